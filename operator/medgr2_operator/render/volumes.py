"""What is mounted where: the workspace, scratch space, shared memory, and secrets where they are needed."""

from __future__ import annotations

from typing import Any

from medgr2_api.data import Fetch
from medgr2_api.stages import definition
from medgr2_api.uris import SecretKeyRef

from . import pvc
from .render_context import RenderContext

WORKSPACE = "/workspace"
SECRETS_DIR = "/var/run/secrets/medgr2.io"
#: HOME and /tmp in one: the rest of the root file system is read-only.
SCRATCH = "/tmp"
#: On the volume: models are fetched once per workspace, not once per pod.
HF_HOME = f"{WORKSPACE}/cache/huggingface"

#: Where the model server leaves the key that it asks for; no Secret, and in no manifest.
MODEL_SERVER_DIR = "/var/run/medgr2.io"

_SIDECAR_SCRATCH = "sidecar-scratch"
_MODEL_SERVER = "model-server"


def volumes(context: RenderContext) -> list[dict[str, Any]]:
    """Volumes of the pod. The large ones have no limit: shared memory is bounded by the pod's limits of memory."""
    return [
        {"name": "workspace", "persistentVolumeClaim": {"claimName": pvc.claim_name(context.cycle)}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
        *(
            [
                {"name": _SIDECAR_SCRATCH, "emptyDir": {}},
                {"name": _MODEL_SERVER, "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            ]
            if context.has_sidecar
            else []
        ),
        *(_secret_volume(index, name, keys) for index, (name, keys) in enumerate(_secrets(context).items())),
    ]


def stage_mounts(context: RenderContext) -> list[dict[str, Any]]:
    """Mounts of container main; `StageContext.secret` reads `<secrets>/<name>/<key>`."""
    read_only = {} if context.policy_server else {"readOnly": True}  # it says there what is to be served
    return [
        *_mounts(context, "scratch"),
        *([{"name": _MODEL_SERVER, "mountPath": MODEL_SERVER_DIR, **read_only}] if context.has_sidecar else []),
        *(
            {"name": _volume_name(index), "mountPath": f"{SECRETS_DIR}/{name}", "readOnly": True}
            for index, name in enumerate(_secrets(context))
        ),
    ]


def sidecar_mounts(context: RenderContext) -> list[dict[str, Any]]:
    """Mounts of a model server: models lie on the workspace; no secret."""
    return [*_mounts(context, _SIDECAR_SCRATCH), {"name": _MODEL_SERVER, "mountPath": MODEL_SERVER_DIR}]


def _mounts(context: RenderContext, scratch: str) -> list[dict[str, Any]]:
    sub_path = context.cycle.spec.workspace.sub_path
    return [
        {"name": "workspace", "mountPath": WORKSPACE, **({"subPath": sub_path} if sub_path else {})},
        {"name": scratch, "mountPath": SCRATCH},
        {"name": "shm", "mountPath": "/dev/shm"},  # workers of a DataLoader and NCCL need more than the 64 MiB default
    ]


def _secrets(context: RenderContext) -> dict[str, list[str]]:
    """The Secrets that the stage reads, each with the keys it needs: a server's that it asks, or those of prepare."""
    server = context.engine.server if context.engine else None
    references = [
        context.provider.api_key_secret_ref if context.provider else None,
        server.api_key_secret_ref if server else None,
        *context.tracking.secrets,
    ]
    if definition(context.create.key.name).fetches and not context.collects:
        data = context.create.request.parameters.get("data", {})
        fetch, pseudonyms = Fetch.model_validate(data.get("fetch", {})), data.get("pseudonymSecretRef")
        references += [
            SecretKeyRef.model_validate(pseudonyms) if pseudonyms else None,
            fetch.hub_token_secret_ref,
            fetch.s3.access_key_id_secret_ref,
            fetch.s3.secret_access_key_secret_ref,
        ]
    keys: dict[str, list[str]] = {}
    for reference in references:
        if reference is not None and reference.key not in keys.setdefault(reference.name, []):
            keys[reference.name].append(reference.key)
    return keys


def _volume_name(index: int) -> str:
    """A Secret's name may be longer than a volume's."""
    return f"secret-{index + 1}" if index else "secret"


def _secret_volume(index: int, name: str, keys: list[str]) -> dict[str, Any]:
    """Only those keys, readable by the pod's group only."""
    items = [{"key": key, "path": key} for key in keys]
    return {"name": _volume_name(index), "secret": {"secretName": name, "items": items, "defaultMode": 0o440}}
