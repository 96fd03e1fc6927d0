-- Argo CD: the health of a MedGR2Cycle. In the ConfigMap argocd-cm it is
-- resource.customizations.health.medgr2.io_MedGR2Cycle; docs/gitops.md has the command.
local health = {status = "Progressing", message = "The operator has not looked at it yet"}
if obj.status == nil or obj.status.observedGeneration ~= obj.metadata.generation then
  return health
end
local holds = {}
for _, condition in ipairs(obj.status.conditions or {}) do
  if condition.status == "True" then
    holds[condition.type] = (condition.reason or "") .. ": " .. (condition.message or "")
  end
end
for _, pair in ipairs({
  {"Reconciling", "Progressing"},
  {"Stalled", "Degraded"},
  {"Ready", "Healthy"},
  {"Suspended", "Suspended"},
  {"AwaitingApproval", "Suspended"},
}) do
  if holds[pair[1]] ~= nil then
    health.status = pair[2]
    health.message = holds[pair[1]]
    return health
  end
end
return health
