"""`vllm serve` beside a stage: a native sidecar, which starts before the stage and ends after it."""

from __future__ import annotations

from typing import Any

from medgr2_api.accelerators import weight
from medgr2_api.kubernetes_fragments import quantity

from . import containers, environment, volumes
from .render_context import RenderContext

NAME = "vllm"
PORT = 8000
#: Only the containers of the pod reach it. A NetworkPolicy could not do that: not every network plugin keeps one.
HOST = "127.0.0.1"
BASE_URL = f"http://{HOST}:{PORT}/v1"
API_KEY_FILE = f"{volumes.MODEL_SERVER_DIR}/vllm-api-key"

_PROBE_SECONDS = 10
#: Each pod has a key of its own, made when its server first starts: in the manifest everybody who may read Jobs saw it.
#: vLLM asks for it on /v1 only, so it stands behind the address, not in its place.
START = f"""\
set -eu
umask 027
[ -s {API_KEY_FILE} ] || python3 -c 'import secrets; print(secrets.token_urlsafe(32))' > {API_KEY_FILE}
read -r VLLM_API_KEY < {API_KEY_FILE}
export VLLM_API_KEY
exec vllm serve "$@"
"""
#: Asks whether the server answers. From within the container: the kubelet cannot reach its loopback.
_PROBE = (
    "import urllib.request as r; "  # whatever proxy the user's variables name, it does not know this pod's loopback
    f"r.build_opener(r.ProxyHandler({{}})).open('http://{HOST}:{PORT}/health', timeout=4)"
)
#: Options by which the user says how the GPUs are shared out.
_PARALLELISM = ("--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp", "--data-parallel-size", "-dp")


def container(context: RenderContext) -> dict[str, Any]:
    """The init container. It gets the stage's `resources`; the stage itself only sends it requests."""
    vllm = context.cycle.spec.generator.vllm
    assert vllm is not None
    assert context.provider is not None
    settings = context.settings
    resources = containers.with_requests(context.stage.resources, settings.cpu_request, settings.memory_request)
    arguments = [
        context.provider.model,
        *("--host", HOST, "--port", str(PORT)),
        *("--allowed-media-domains", "nowhere.invalid"),  # fetches no address that a question names
        *_parallelism(resources, vllm.args),
        *vllm.args,
    ]
    return {
        "name": NAME,
        "image": vllm.image or settings.vllm_image,
        "imagePullPolicy": settings.image_pull_policy,
        "restartPolicy": "Always",
        # named, because the entry point of vLLM's images has changed before
        "command": ["sh", "-c", environment.escape(START), "vllm"],
        "args": [environment.escape(argument) for argument in arguments],
        "workingDir": volumes.WORKSPACE,  # a model may be a folder of the workspace; it is served under the same name
        "env": environment.of_sidecar(context, gpus=containers.has_accelerators(resources)),
        **({"envFrom": context.template.env_from} if context.template.env_from else {}),
        # The stage starts once it answers: a request must not fail because the model is still loading.
        "startupProbe": {
            "exec": {"command": ["python3", "-c", _PROBE]},
            "periodSeconds": _PROBE_SECONDS,
            "timeoutSeconds": 5,
            "failureThreshold": max(1, settings.vllm_startup_seconds // _PROBE_SECONDS),
        },
        "resources": containers.with_limits(resources, settings.cpu_limit, settings.memory_limit),
        "terminationMessagePolicy": "FallbackToLogsOnError",  # why it does not stay up; it writes no message itself
        "securityContext": containers.security_context(),
        "volumeMounts": volumes.sidecar_mounts(context),
    }


def _parallelism(resources: dict[str, Any], arguments: list[str]) -> list[str]:
    """All GPUs for one model, unless the user shares them out: vLLM alone would use the first only."""
    limits = resources.get("limits") or {}
    gpus = max((int(quantity(amount) or 0) for name, amount in limits.items() if weight(name, {}) == 1), default=0)
    if gpus < 2 or any(argument.split("=")[0].replace("_", "-") in _PARALLELISM for argument in arguments):
        return []
    return ["--tensor-parallel-size", str(gpus)]
