"""The pod through which people read a cycle's volume: short-lived, without permissions, and read-only except for one
folder at most."""

from __future__ import annotations

from typing import Any

from medgr2_api.cycle import Cycle
from medgr2_api.stage_contract import WORKSPACE_ENV

from . import containers, labels, pvc
from .render_context import RenderSettings
from .volumes import SCRATCH, WORKSPACE

#: Its only container.
READER = "reader"


def reader_pod(
    cycle: Cycle, name: str, image: str, seconds: int, settings: RenderSettings, writable: str = ""
) -> dict[str, Any]:
    """The pod.

    Args:
        cycle: whose volume; the pod goes with it.
        name: of the pod.
        image: has Python and medgr2_jobs.
        seconds: after which Kubernetes ends it if nothing else did.
        settings: the operator's.
        writable: folder of the workspace that it may write to; the rest stays read-only. Empty: none.
    """
    template, sub_path = cycle.spec.template, cycle.spec.workspace.sub_path
    placement = {"nodeSelector": template.node_selector, "tolerations": template.tolerations}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            **labels.owned(
                cycle, name, {**labels.of_user(template), **labels.of_cycle(cycle, READER), **pvc.volume_label(cycle)}
            ),
            **({"annotations": template.annotations} if template.annotations else {}),
        },
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": seconds,
            "terminationGracePeriodSeconds": 1,  # there is nothing to save
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            **({"serviceAccountName": template.service_account_name} if template.service_account_name else {}),
            **({"imagePullSecrets": template.image_pull_secrets} if template.image_pull_secrets else {}),
            "securityContext": containers.pod_security_context(settings.user_id, template.security_context),
            **{key: value for key, value in placement.items() if value},
            "affinity": _affinity(cycle),
            "containers": [
                {
                    "name": READER,
                    "image": image,
                    "imagePullPolicy": settings.image_pull_policy,
                    "command": ["python", "-c", f"import time; time.sleep({seconds})"],
                    "env": [
                        {"name": WORKSPACE_ENV, "value": WORKSPACE},
                        {"name": "HOME", "value": SCRATCH},
                        {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"},  # as in stages without GPUs
                    ],
                    "resources": settings.collect_resources,
                    "securityContext": containers.security_context(),
                    "volumeMounts": [
                        {
                            "name": "workspace",
                            "mountPath": WORKSPACE,
                            "readOnly": True,
                            **({"subPath": sub_path} if sub_path else {}),
                        },
                        *([_writable(sub_path, writable)] if writable else []),
                        {"name": "scratch", "mountPath": SCRATCH},
                    ],
                }
            ],
            "volumes": [
                {"name": "workspace", "persistentVolumeClaim": {"claimName": pvc.claim_name(cycle)}},
                {"name": "scratch", "emptyDir": {}},
            ],
        },
    }


def _writable(sub_path: str, folder: str) -> dict[str, Any]:
    """The folder over its read-only self; the kubelet makes it where it is missing."""
    inside = f"{sub_path}/{folder}" if sub_path else folder
    return {"name": "workspace", "mountPath": f"{WORKSPACE}/{folder}", "subPath": inside}


def _affinity(cycle: Cycle) -> dict[str, Any]:
    """Prefers the node where stages use a volume that only one node can mount. Their pods have the label only then, so
    for other volumes the preference has no effect, and a reader need not know the volume's kind."""
    selector = {"labelSelector": {"matchLabels": pvc.volume_label(cycle)}, "topologyKey": "kubernetes.io/hostname"}
    preference = {"weight": 100, "podAffinityTerm": selector}
    return {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [preference]}}
