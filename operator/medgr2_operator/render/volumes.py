"""What is mounted where: the workspace, scratch space, shared memory, and a secret where one is needed."""

from __future__ import annotations

from typing import Any

from .attempt import Attempt
from .metadata import claim_name

WORKSPACE = "/workspace"
SECRETS_DIR = "/var/run/secrets/medgr2.io"
#: HOME and /tmp in one: the rest of the root file system is read-only.
SCRATCH = "/tmp"
#: On the volume: models are fetched once per workspace, not once per pod.
HF_HOME = f"{WORKSPACE}/cache/huggingface"

_SIDECAR_SCRATCH = "sidecar-scratch"


def volumes(attempt: Attempt) -> list[dict[str, Any]]:
    """Volumes of the pod. None has a size limit: shared memory is bounded by the memory limits of the pod."""
    secret = _secret(attempt)
    return [
        {"name": "workspace", "persistentVolumeClaim": {"claimName": claim_name(attempt.cycle)}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
        *([{"name": _SIDECAR_SCRATCH, "emptyDir": {}}] if attempt.has_sidecar else []),
        *([_secret_volume(*secret)] if secret else []),
    ]


def stage_mounts(attempt: Attempt) -> list[dict[str, Any]]:
    """Mounts of container main; `StageContext.secret` reads `<secrets>/<name>/<key>`."""
    secret = _secret(attempt)
    return [
        *_mounts(attempt, "scratch"),
        *([{"name": "secret", "mountPath": f"{SECRETS_DIR}/{secret[0]}", "readOnly": True}] if secret else []),
    ]


def sidecar_mounts(attempt: Attempt) -> list[dict[str, Any]]:
    """Mounts of a model server: models lie on the workspace; no secret."""
    return _mounts(attempt, _SIDECAR_SCRATCH)


def _mounts(attempt: Attempt, scratch: str) -> list[dict[str, Any]]:
    sub_path = attempt.cycle.spec.workspace.sub_path
    return [
        {"name": "workspace", "mountPath": WORKSPACE, **({"subPath": sub_path} if sub_path else {})},
        {"name": scratch, "mountPath": SCRATCH},
        {"name": "shm", "mountPath": "/dev/shm"},  # workers of a DataLoader and NCCL need more than the 64 MiB default
    ]


def _secret(attempt: Attempt) -> tuple[str, str] | None:
    """Name and key of the secret that the stage reads."""
    reference = attempt.provider.api_key_secret_ref if attempt.provider else None
    return (reference.name, reference.key) if reference else None


def _secret_volume(name: str, key: str) -> dict[str, Any]:
    """Only the one key, readable by the pod's group only."""
    return {
        "name": "secret",
        "secret": {"secretName": name, "items": [{"key": key, "path": key}], "defaultMode": 0o440},
    }
