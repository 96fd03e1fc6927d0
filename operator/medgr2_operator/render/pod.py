"""The pod of an attempt, and on which nodes it may run."""

from __future__ import annotations

from typing import Any

from . import containers, egress, environment, labels, pvc, rendezvous, vllm_sidecar, volumes
from .render_context import RenderContext

#: The container that does the work. podFailurePolicy and the observer read its exit code, never another's.
MAIN = "main"


def template(context: RenderContext) -> dict[str, Any]:
    """The Job's pod template."""
    spec = context.template
    return {
        "metadata": {
            **({"annotations": spec.annotations} if spec.annotations else {}),
            "labels": {
                **labels.of_user(context.template),
                **labels.of_attempt(context.cycle, context.create.key),
                egress.LABEL: str(egress.of(context)),
                **(pvc.volume_label(context.cycle) if context.single_node else {}),
            },
        },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": spec.termination_grace_period_seconds,
            "automountServiceAccountToken": False,  # a stage never talks to the API server
            "enableServiceLinks": False,
            **({"serviceAccountName": spec.service_account_name} if spec.service_account_name else {}),
            **({"imagePullSecrets": spec.image_pull_secrets} if spec.image_pull_secrets else {}),
            **rendezvous.subdomain(context),
            "securityContext": containers.pod_security_context(context.settings.user_id, spec.security_context),
            **_placement(context),
            **({"initContainers": [vllm_sidecar.container(context)]} if context.has_sidecar else {}),
            "containers": [_main(context)],
            "volumes": volumes.volumes(context),
        },
    }


def _main(context: RenderContext) -> dict[str, Any]:
    resources = _resources(context)
    threads = containers.threads(resources, context.processes)
    return {
        "name": MAIN,
        "image": context.image,
        "imagePullPolicy": context.settings.image_pull_policy,
        "command": ["python", "-m", "medgr2_jobs.runner.main"],
        "env": environment.of_stage(
            context,
            threads,
            gpus=containers.has_accelerators(resources),
            base_url=vllm_sidecar.BASE_URL if context.has_sidecar else "",
            api_key_file=vllm_sidecar.API_KEY_FILE if context.has_sidecar else "",
            control_folder=volumes.MODEL_SERVER_DIR if context.policy_server else "",
        ),
        **({"envFrom": context.template.env_from} if context.template.env_from else {}),
        "ports": [{"name": "progress", "containerPort": context.settings.progress_port}],
        "resources": containers.with_limits(resources, context.settings.cpu_limit, context.settings.memory_limit),
        "terminationMessagePath": environment.RESULT_PATH,
        "terminationMessagePolicy": "FallbackToLogsOnError",  # the log's tail, when a stage died without a result
        "securityContext": containers.security_context(),
        "volumeMounts": volumes.stage_mounts(context),
    }


def _resources(context: RenderContext) -> dict[str, Any]:
    settings = context.settings
    if context.collects:
        return settings.collect_resources
    if context.shared.served:
        given = containers.part(context.stage.resources, 1 - context.shared.of_server)
    else:
        given = {} if context.has_sidecar else context.stage.resources  # they are the sidecar's
    return containers.with_requests(given, settings.cpu_request, settings.memory_request)


def _placement(context: RenderContext) -> dict[str, Any]:
    """The pod's nodeSelector, tolerations and affinity.

    What a stage says instead of the template is about the nodes of its work (GPUs); collecting needs none of them.
    """
    template = context.template
    selector, tolerations = template.node_selector, template.tolerations
    if not context.collects:
        selector = selector if context.stage.node_selector is None else context.stage.node_selector
        tolerations = tolerations if context.stage.tolerations is None else context.stage.tolerations
    affinity = _same_node(template.affinity, context) if context.single_node else template.affinity
    placement = {"nodeSelector": selector, "tolerations": tolerations, "affinity": affinity}
    return {name: value for name, value in placement.items() if value}


def _same_node(affinity: dict[str, Any], context: RenderContext) -> dict[str, Any]:
    """The affinity, narrowed to the node where pods with the same volume run; to any node while there is none.

    The scheduler places one pod after the other, so this holds for stages that start at the same moment, too; a node
    name that was read before would not.
    """
    pods = affinity.get("podAffinity") or {}
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    term = {"labelSelector": {"matchLabels": pvc.volume_label(context.cycle)}, "topologyKey": "kubernetes.io/hostname"}
    return {**affinity, "podAffinity": {**pods, required: [*(pods.get(required) or []), term]}}
