{{- /* What the operator does in the namespaces of cycles; tests/cluster/chart/test_rbac.py proves that it needs each line. */}}
{{- define "medgr2-operator.rules" -}}
- apiGroups: [medgr2.io]
  resources: [medgr2cycles]
  verbs: [get, list, watch, delete]  # delete: ttlSecondsAfterFinished
- apiGroups: [medgr2.io]
  resources: [medgr2cycles/status]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, delete]  # delete: pods that a lost node left behind
- apiGroups: [""]
  resources: [services]
  verbs: [get, create]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, create]
- apiGroups: [""]
  resources: [events]
  verbs: [get, list, create, patch]  # list: of a Job or pod that does not say what it waits for
{{- if .Values.kueue.enabled }}
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [list]
{{- end }}
{{- end }}
