"""`vllm serve` beside a stage: a native sidecar, which starts before the stage and ends after it."""

from __future__ import annotations

from typing import Any

from medgr2_api.accelerators import weight
from medgr2_api.engine import VLLMEngine
from medgr2_api.kubernetes_fragments import quantity
from medgr2_api.stage_contract import VLLM_ENDED, VLLM_KEY, VLLM_WANTED
from medgr2_api.stages import GRPO
from medgr2_api.vllm_options import PARALLELISM

from . import containers, environment, volumes
from .render_context import RenderContext

NAME = "vllm"
PORT = 8000
#: Only the containers of the pod reach it. A NetworkPolicy could not do that: not every network plugin keeps one.
HOST = "127.0.0.1"
BASE_URL = f"http://{HOST}:{PORT}/v1"
API_KEY_FILE = f"{volumes.MODEL_SERVER_DIR}/{VLLM_KEY}"

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
#: Serves what the stage wants (`medgr2_jobs.engine.vllm_sidecar`): a checkpoint's place is known to the stage only. A
#: server that ends by itself is told, and not started again: the stage ends, too.
POLICY = f"""\
set -eu
umask 027
folder={volumes.MODEL_SERVER_DIR}
key=$folder/{VLLM_KEY}
[ -s "$key" ] || python3 -c 'import secrets; print(secrets.token_urlsafe(32))' > "$key"
read -r VLLM_API_KEY < "$key"
export VLLM_API_KEY VLLM_ALLOW_RUNTIME_LORA_UPDATING=True
served= pid= name=
leave() {{ [ -z "$pid" ] || kill "$pid" 2>/dev/null || :; wait; exit 0; }}
trap leave TERM INT
while :; do
  wanted=$(cat "$folder/{VLLM_WANTED}" 2>/dev/null) || wanted=
  if [ "$wanted" != "$served" ]; then
    if [ -n "$pid" ]; then kill "$pid" 2>/dev/null || :; wait "$pid" || :; pid=; fi
    served=$wanted
    if [ -n "$wanted" ]; then
      {{ read -r name; read -r rank; read -r model; }} <<END
$wanted
END
      lora=
      [ "$rank" = 0 ] || lora="--enable-lora --max-lora-rank $rank"
      vllm serve "$model" --served-model-name "$name" $lora "$@" &
      pid=$!
    fi
  elif [ -n "$pid" ] && ! kill -0 "$pid" 2>/dev/null; then
    code=0
    wait "$pid" || code=$?
    pid=
    echo "$name $code" > "$folder/{VLLM_ENDED}"
  fi
  sleep 1 &
  wait $! || :
done
"""
#: Asks whether the server answers. From within the container: the kubelet cannot reach its loopback.
_PROBE = (
    "import urllib.request as r; "  # whatever proxy the user's variables name, it does not know this pod's loopback
    f"r.build_opener(r.ProxyHandler({{}})).open('http://{HOST}:{PORT}/health', timeout=4)"
)


def container(context: RenderContext) -> dict[str, Any]:
    """The init container. It gets the stage's `resources`; the stage itself only sends it requests."""
    if (chosen := context.policy_server) is not None:
        return _container(context, POLICY, [*_of_policy(context, chosen), *_common(context, chosen.args)], chosen.image)
    vllm = context.cycle.spec.generator.vllm
    assert vllm is not None
    assert context.provider is not None
    return {
        **_container(context, START, [context.provider.model, *_common(context, vllm.args)], vllm.image),
        # The stage starts once it answers: a request must not fail because the model is still loading.
        "startupProbe": {
            "exec": {"command": ["python3", "-c", _PROBE]},
            "periodSeconds": _PROBE_SECONDS,
            "timeoutSeconds": 5,
            "failureThreshold": max(1, context.settings.vllm_startup_seconds // _PROBE_SECONDS),
        },
    }


def _of_policy(context: RenderContext, chosen: VLLMEngine) -> list[str]:
    """What every server of the policy is told; `wanted` says the rest. In the precision in which stages load models."""
    given, gpus = {_name(argument) for argument in chosen.args}, containers.has_accelerators(_resources(context))
    return [
        "--enable-scale-out",  # tokens in, tokens out
        *("--generation-config", "vllm"),  # each request says all of its own
        *("--limit-mm-per-prompt", '{"image": 1, "video": 0}'),
        *(["--logprobs-mode", "processed_logprobs"] if context.create.key.name == GRPO.name else []),
        *([] if "--dtype" in given else ["--dtype", "bfloat16" if gpus else "float32"]),
        *(["--max-model-len", "auto"] if gpus and "--max-model-len" not in given else []),
    ]


def _name(argument: str) -> str:
    """Of an option, without its value."""
    return argument.split("=")[0].replace("_", "-")


def _resources(context: RenderContext) -> dict[str, Any]:
    settings, given = context.settings, context.stage.resources
    if context.shared.served:
        given = containers.part(given, context.shared.of_server)
    return containers.with_requests(given, settings.cpu_request, settings.memory_request)


def _common(context: RenderContext, arguments: list[str]) -> list[str]:
    return [
        *("--host", HOST, "--port", str(PORT)),
        *("--allowed-media-domains", "nowhere.invalid"),  # fetches no address that a question names
        *_parallelism(_resources(context), arguments),
        *arguments,
    ]


def _container(context: RenderContext, start: str, arguments: list[str], image: str) -> dict[str, Any]:
    settings, resources = context.settings, _resources(context)
    return {
        "name": NAME,
        "image": image or settings.vllm_image,
        "imagePullPolicy": settings.image_pull_policy,
        "restartPolicy": "Always",
        # named, because the entry point of vLLM's images has changed before
        "command": ["sh", "-c", environment.escape(start), "vllm"],
        "args": [environment.escape(argument) for argument in arguments],
        "workingDir": volumes.WORKSPACE,  # a model may be a folder of the workspace; it is served under the same name
        "env": environment.of_sidecar(context, gpus=containers.has_accelerators(resources)),
        **({"envFrom": context.template.env_from} if context.template.env_from else {}),
        "resources": containers.with_limits(resources, settings.cpu_limit, settings.memory_limit),
        "terminationMessagePolicy": "FallbackToLogsOnError",  # why it does not stay up; it writes no message itself
        "securityContext": containers.security_context(),
        "volumeMounts": volumes.sidecar_mounts(context),
    }


def _parallelism(resources: dict[str, Any], arguments: list[str]) -> list[str]:
    """All GPUs for one model, unless the user shares them out: vLLM alone would use the first only."""
    limits = resources.get("limits") or {}
    gpus = max((int(quantity(amount) or 0) for name, amount in limits.items() if weight(name, {}) == 1), default=0)
    if gpus < 2 or any(_name(argument) in PARALLELISM for argument in arguments):
        return []
    return [PARALLELISM[0], str(gpus)]
