"""`vllm serve` beside a stage: a native sidecar, which starts before the stage and ends after it."""

from __future__ import annotations

from typing import Any

from . import containers, environment, volumes
from .render_context import RenderContext

NAME = "vllm"
PORT = 8000
BASE_URL = f"http://127.0.0.1:{PORT}/v1"

_PROBE_SECONDS = 10
#: Options by which the user says how the GPUs are shared out.
_PARALLELISM = ("--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp", "--data-parallel-size", "-dp")


def container(context: RenderContext) -> dict[str, Any]:
    """The init container. It gets the stage's `resources`; the stage itself only sends it requests."""
    vllm = context.cycle.spec.generator.vllm
    assert vllm is not None
    assert context.provider is not None
    settings = context.settings
    resources = containers.with_requests(context.stage.resources, settings.cpu_request, settings.memory_request)
    arguments = [context.provider.model, "--port", str(PORT), *_parallelism(resources, vllm.args), *vllm.args]
    return {
        "name": NAME,
        "image": vllm.image or settings.vllm_image,
        "imagePullPolicy": settings.image_pull_policy,
        "restartPolicy": "Always",
        "command": ["vllm", "serve"],  # named, because the entry point of vLLM's images has changed before
        "args": [environment.escape(argument) for argument in arguments],
        "workingDir": volumes.WORKSPACE,  # a model may be a folder of the workspace; it is served under the same name
        "env": environment.of_sidecar(context, gpus=containers.has_accelerators(resources)),
        **({"envFrom": context.template.env_from} if context.template.env_from else {}),
        "ports": [{"name": "openai", "containerPort": PORT}],
        # The stage starts once it answers: a request must not fail because the model is still loading.
        "startupProbe": {
            "httpGet": {"path": "/health", "port": "openai"},
            "periodSeconds": _PROBE_SECONDS,
            "timeoutSeconds": 5,
            "failureThreshold": max(1, settings.vllm_startup_seconds // _PROBE_SECONDS),
        },
        "resources": resources,
        "securityContext": containers.security_context(),
        "volumeMounts": volumes.sidecar_mounts(context),
    }


def _parallelism(resources: dict[str, Any], arguments: list[str]) -> list[str]:
    """All GPUs for one model, unless the user shares them out: vLLM alone would use the first only."""
    gpus = int((resources.get("limits") or {}).get("nvidia.com/gpu", 0))
    if gpus < 2 or any(argument.split("=")[0] in _PARALLELISM for argument in arguments):
        return []
    return ["--tensor-parallel-size", str(gpus)]
