"""What is mounted where: the workspace, scratch space, shared memory, and secrets where they are needed."""

from __future__ import annotations

from typing import Any

from medgr2_api.data import Fetch
from medgr2_api.stage_contract import StageName

from .metadata import claim_name
from .render_context import Attempt

WORKSPACE = "/workspace"
SECRETS_DIR = "/var/run/secrets/medgr2.io"
#: HOME and /tmp in one: the rest of the root file system is read-only.
SCRATCH = "/tmp"
#: On the volume: models are fetched once per workspace, not once per pod.
HF_HOME = f"{WORKSPACE}/cache/huggingface"

_SIDECAR_SCRATCH = "sidecar-scratch"


def volumes(attempt: Attempt) -> list[dict[str, Any]]:
    """Volumes of the pod. None has a size limit: shared memory is bounded by the memory limits of the pod."""
    return [
        {"name": "workspace", "persistentVolumeClaim": {"claimName": claim_name(attempt.cycle)}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
        *([{"name": _SIDECAR_SCRATCH, "emptyDir": {}}] if attempt.has_sidecar else []),
        *(_secret_volume(index, name, keys) for index, (name, keys) in enumerate(_secrets(attempt).items())),
    ]


def stage_mounts(attempt: Attempt) -> list[dict[str, Any]]:
    """Mounts of container main; `StageContext.secret` reads `<secrets>/<name>/<key>`."""
    return [
        *_mounts(attempt, "scratch"),
        *(
            {"name": _volume_name(index), "mountPath": f"{SECRETS_DIR}/{name}", "readOnly": True}
            for index, name in enumerate(_secrets(attempt))
        ),
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


def _secrets(attempt: Attempt) -> dict[str, list[str]]:
    """The Secrets that the stage reads, each with the keys it needs: the provider's, or those to fetch with."""
    wanted = [attempt.provider.api_key_secret_ref if attempt.provider else None]
    if attempt.create.key.name is StageName.PREPARE and not attempt.collects:
        fetch = Fetch.model_validate(attempt.create.request.parameters.get("data", {}).get("fetch", {}))
        wanted += [
            fetch.hub_token_secret_ref,
            fetch.s3.access_key_id_secret_ref,
            fetch.s3.secret_access_key_secret_ref,
        ]
    found: dict[str, list[str]] = {}
    for reference in wanted:
        if reference is not None and reference.key not in found.setdefault(reference.name, []):
            found[reference.name].append(reference.key)
    return found


def _volume_name(index: int) -> str:
    """A Secret's name may be longer than a volume's."""
    return f"secret-{index + 1}" if index else "secret"


def _secret_volume(index: int, name: str, keys: list[str]) -> dict[str, Any]:
    """Only those keys, readable by the pod's group only."""
    items = [{"key": key, "path": key} for key in keys]
    return {"name": _volume_name(index), "secret": {"secretName": name, "items": items, "defaultMode": 0o440}}
