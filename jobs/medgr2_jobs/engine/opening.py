"""From `policy.engine` of the spec to what answers."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medgr2_api import paths
from medgr2_api.engine import Engine
from medgr2_api.stage_contract import VLLM_BASE_URL_ENV, VLLM_CONTROL_ENV, VLLM_GPUS_ENV, VLLM_NO_GPUS

from ..runner import stage_log
from ..runner.context import StageContext
from .in_process import InProcessEngine
from .sampler import SamplerEngine
from .token_client import Address
from .vllm_engine import ChildServers, ServedEngine, UsersServer, VLLMServers
from .vllm_sidecar import SidecarServers

_log = logging.getLogger(__name__)


def opened(ctx: StageContext[Any], chosen: Engine) -> SamplerEngine:
    """What the spec says, as a context: at its end nothing runs any more.

    Raises:
        ConfigError: a secret that it names is not there.
    """
    found = servers(ctx, chosen)
    return InProcessEngine() if found is None else ServedEngine(found)


def servers(ctx: StageContext[Any], chosen: Engine, arguments: Sequence[str] = ()) -> VLLMServers | None:
    """Where the vLLM comes from that the spec asks for; None: the policy answers in the stage's process.

    Args:
        ctx: the stage's.
        chosen: `policy.engine`.
        arguments: further ones of a `vllm serve` that the stage starts; beside it the operator has given them.

    Raises:
        ConfigError: a secret that it names is not there.
    """
    if chosen.server is not None:
        secret = chosen.server.api_key_secret_ref
        key = ctx.secret(secret.name, secret.key) if secret else ""
        return UsersServer(Address.of(chosen.server.base_url, key))
    if chosen.vllm is None:
        return None
    if folder := os.environ.get(VLLM_CONTROL_ENV):
        return SidecarServers(Address.of(os.environ[VLLM_BASE_URL_ENV]).root, Path(folder))
    if not _may_start():
        _log.info("no vLLM beside this stage, which needs its GPUs itself: the policy answers in its process")
        return None
    request = ctx.request
    attempt = paths.attempt_name(request.iteration, request.stage, request.token, request.attempt, request.shard.index)
    log = ctx.root / paths.log(request.cycle.name, f"{attempt}-vllm")
    return ChildServers(log, [*arguments, *chosen.vllm.args], request.threads, gpus=os.environ.get(VLLM_GPUS_ENV))


def samples_rollouts(chosen: Engine) -> bool:
    """Whether a vLLM samples for GRPO: where it has GPUs beside those that train."""
    if chosen.vllm is None or chosen.vllm.rollout_gpus == 0:
        return chosen.server is not None
    return VLLM_CONTROL_ENV in os.environ or _may_start()


def _may_start() -> bool:
    """Whether a stage may start a vLLM itself: not in a pod, nor where all GPUs are its own."""
    return os.environ.get(VLLM_GPUS_ENV) != VLLM_NO_GPUS and not os.environ.get(stage_log.IN_CLUSTER_ENV)
