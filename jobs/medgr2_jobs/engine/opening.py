"""From `policy.engine` of the spec to what answers."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from medgr2_api import paths
from medgr2_api.engine import Engine
from medgr2_api.stage_contract import VLLM_BASE_URL_ENV, VLLM_CONTROL_ENV

from ..runner import stage_log
from ..runner.context import StageContext
from .in_process import InProcessEngine
from .sampler import SamplerEngine
from .token_client import Address
from .vllm_engine import ChildServers, ServedEngine, UsersServer
from .vllm_sidecar import SidecarServers

_log = logging.getLogger(__name__)


def opened(ctx: StageContext[Any], chosen: Engine) -> SamplerEngine:
    """What the spec says, as a context: at its end nothing runs any more.

    Raises:
        ConfigError: a secret that it names is not there.
    """
    if chosen.server is not None:
        secret = chosen.server.api_key_secret_ref
        key = ctx.secret(secret.name, secret.key) if secret else ""
        return ServedEngine(UsersServer(Address.of(chosen.server.base_url, key)))
    if chosen.vllm is not None and (folder := os.environ.get(VLLM_CONTROL_ENV)):
        return ServedEngine(SidecarServers(Address.of(os.environ[VLLM_BASE_URL_ENV]).root, Path(folder)))
    if chosen.vllm is not None and os.environ.get(stage_log.IN_CLUSTER_ENV):
        _log.info("no vLLM beside this stage, which needs its GPUs itself: the policy answers in its process")
        return InProcessEngine()
    if chosen.vllm is not None:
        request = ctx.request
        attempt = paths.attempt_name(
            request.iteration, request.stage, request.token, request.attempt, request.shard.index
        )
        log = ctx.root / paths.log(request.cycle.name, f"{attempt}-vllm")
        return ServedEngine(ChildServers(log, chosen.vllm.args, request.threads))
    return InProcessEngine()
