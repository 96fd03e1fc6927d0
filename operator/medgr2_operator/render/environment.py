"""The variables that the containers get."""

from __future__ import annotations

from typing import Any

from medgr2_api.stage_contract import (
    DEEPSPEED_ENV,
    INDEX_ENV,
    PROGRESS_PORT_ENV,
    REQUEST_ENV,
    RESULT_PATH_ENV,
    SECRETS_ENV,
    VLLM_API_KEY_FILE_ENV,
    VLLM_BASE_URL_ENV,
    VLLM_CONTROL_ENV,
    WORKSPACE_ENV,
    Shard,
)

from . import rendezvous
from .render_context import RenderContext, RenderError
from .volumes import HF_HOME, SCRATCH, SECRETS_DIR, WORKSPACE

RESULT_PATH = "/dev/termination-log"


def escape(text: str) -> str:
    """Text that the kubelet passes on unchanged: it replaces `$(NAME)`, and `$$` is how one dollar is written."""
    return text.replace("$", "$$")


def of_stage(
    context: RenderContext,
    threads: int,
    *,
    gpus: bool,
    base_url: str = "",
    api_key_file: str = "",
    control_folder: str = "",
) -> list[dict[str, Any]]:
    """Variables of container main: the contract's, defaults, and the user's.

    Args:
        context: of the attempt.
        threads: CPU threads of one process.
        gpus: whether the container has any.
        base_url: where a model server beside the stage answers.
        api_key_file: where it leaves the key that it asks for.
        control_folder: where it is told what to serve.
    """
    request = context.create.request.model_copy(
        update={
            # a pod takes its own number from JOB_COMPLETION_INDEX: all pods of a Job share one template
            "shard": Shard(index=0, count=context.shards),
            "grace_seconds": float(context.template.termination_grace_period_seconds),
            "threads": threads,
        }
    )
    contract = {
        REQUEST_ENV: escape(request.model_dump_json(by_alias=True, exclude_none=True)),
        RESULT_PATH_ENV: RESULT_PATH,
        WORKSPACE_ENV: WORKSPACE,
        SECRETS_ENV: SECRETS_DIR,
        PROGRESS_PORT_ENV: str(context.settings.progress_port),
        **({VLLM_BASE_URL_ENV: base_url, VLLM_API_KEY_FILE_ENV: api_key_file} if base_url else {}),
        **({VLLM_CONTROL_ENV: control_folder} if control_folder else {}),
        **rendezvous.environment(context),
        **({DEEPSPEED_ENV: str(context.stage.deepspeed)} if context.stage.deepspeed and not context.collects else {}),
    }
    defaults = {
        **_HOME,
        "HF_HUB_OFFLINE": "0" if context.create.key.name in _FETCHES else "1",
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",  # what a killed stage printed last must not be lost in a buffer
        **_devices(gpus),
    }
    return [*_variables(contract), *_with_user_env(defaults, context)]


def of_sidecar(context: RenderContext, *, gpus: bool) -> list[dict[str, Any]]:
    """Variables of a model server: the user's (tokens to fetch models, proxies) over a place for its caches."""
    return _with_user_env({**_HOME, **_devices(gpus)}, context)


#: Stages that may fetch from the Hugging Face hub; all others read what those pinned.
_FETCHES = ("prepare",)
_HOME = {
    "HOME": SCRATCH,
    "USER": "medgr2",  # torch asks for the user's name, and a numeric user has no entry in /etc/passwd
    "HF_HOME": HF_HOME,
}


def _devices(gpus: bool) -> dict[str, str]:
    """Where NVIDIA's runtime is a node's default, CUDA images without GPUs of their own see those of other pods."""
    return {} if gpus else {"NVIDIA_VISIBLE_DEVICES": "void"}


def _with_user_env(defaults: dict[str, str], context: RenderContext) -> list[dict[str, Any]]:
    """The defaults, then the user's variables, which may refer to them; one of the same name replaces the default."""
    user_env = context.template.env
    for index, variable in enumerate(user_env):
        if variable["name"] == INDEX_ENV or variable["name"].startswith("MEDGR2_"):
            raise RenderError(
                f"spec.template.env[{index}]", f"{variable['name']} is the operator's to set: use another name"
            )
    names = {variable["name"] for variable in user_env}
    return [*_variables({name: text for name, text in defaults.items() if name not in names}), *user_env]


def _variables(values: dict[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "value": text} for name, text in values.items()]
