"""The pod of an attempt."""

from __future__ import annotations

from typing import Any

from . import environment, labels, rendezvous, resources, security, vllm_sidecar, volumes
from .affinity import placement
from .render_context import Attempt

#: The container that does the work. podFailurePolicy and the observer read its exit code, never another's.
MAIN = "main"


def template(attempt: Attempt) -> dict[str, Any]:
    """The Job's pod template."""
    spec = attempt.template
    return {
        "metadata": {
            "labels": {
                **labels.of_attempt(attempt.cycle, attempt.create.key),
                **(labels.of_volume(attempt.cycle) if attempt.single_node else {}),
            }
        },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": spec.termination_grace_period_seconds,
            "automountServiceAccountToken": False,  # a stage never talks to the API server
            "enableServiceLinks": False,
            **({"serviceAccountName": spec.service_account_name} if spec.service_account_name else {}),
            **({"imagePullSecrets": spec.image_pull_secrets} if spec.image_pull_secrets else {}),
            **rendezvous.subdomain(attempt),
            "securityContext": security.of_pod(attempt),
            **placement(attempt),
            **({"initContainers": [vllm_sidecar.container(attempt)]} if attempt.has_sidecar else {}),
            "containers": [_main(attempt)],
            "volumes": volumes.volumes(attempt),
        },
    }


def _main(attempt: Attempt) -> dict[str, Any]:
    wanted = _resources(attempt)
    threads = resources.threads(wanted, attempt.processes, attempt.path)
    return {
        "name": MAIN,
        "image": attempt.image,
        "imagePullPolicy": attempt.settings.image_pull_policy,
        "command": ["python", "-m", "medgr2_jobs.runner.main"],
        "env": environment.of_stage(
            attempt,
            threads,
            gpus=resources.has_accelerators(wanted),
            base_url=vllm_sidecar.BASE_URL if attempt.has_sidecar else "",
        ),
        **({"envFrom": attempt.template.env_from} if attempt.template.env_from else {}),
        "ports": [{"name": "progress", "containerPort": attempt.settings.progress_port}],
        "resources": wanted,
        "terminationMessagePath": environment.RESULT_PATH,
        "terminationMessagePolicy": "FallbackToLogsOnError",  # a stage that died without a word: its last lines
        "securityContext": security.of_container(),
        "volumeMounts": volumes.stage_mounts(attempt),
    }


def _resources(attempt: Attempt) -> dict[str, Any]:
    settings = attempt.settings
    if attempt.collects:
        return {"requests": {"cpu": settings.collect_cpu_request, "memory": settings.collect_memory_request}}
    given = {} if attempt.has_sidecar else attempt.stage.resources  # they are the sidecar's
    return resources.with_requests(given, settings.cpu_request, settings.memory_request)
