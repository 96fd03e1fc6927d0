"""Who answers for the policy's checkpoints where stages ask them: transformers, or a vLLM."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from .cel_rules import Rule
from .hashing import NOT_HASHED, HashedAs
from .model import Model
from .types import Argument, HttpURL
from .uris import SecretKeyRef
from .vllm_options import ALLOWED_OPTION, answering


class TransformersEngine(Model):
    """The model in the stage's own process."""


class VLLMEngine(Model):
    """A `vllm serve` that the stage has for itself: a child process of `medgr2 run`, a sidecar on a cluster."""

    image: Annotated[str, NOT_HASHED] = ""
    """Container image; empty: the operator's default. `medgr2 run` has an environment of its own (`medgr2 vllm
    install`)."""
    args: Annotated[list[Annotated[Argument, ALLOWED_OPTION]], Field(max_length=100), HashedAs(answering)] = []
    """Further arguments of `vllm serve`: options about speed, memory and precision."""
    rollout_gpus: Annotated[int | None, NOT_HASHED, Field(ge=0, le=64, alias="rolloutGPUs")] = None
    """Of the GPUs of stage grpo, those that its vLLM has, which samples for it; the others train. 0: the policy samples
    in the processes that train it; default: half of them, or what numProcPerNode leaves."""


class ServerEngine(Model):
    """A vLLM on site that runs already: it serves `policy.baseModel` and is given adapters while it runs."""

    base_url: Annotated[HttpURL, NOT_HASHED, Field(alias="baseURL")]
    """Its address, such as http://vllm.models.svc:8000; it has the workspace mounted at the same path as the stages."""
    api_key_secret_ref: Annotated[SecretKeyRef | None, NOT_HASHED] = None
    """Where its API key lies; absent: it asks for none."""


KINDS = ("transformers", "vllm", "server")


class Engine(Model):
    """Who answers. Exactly one must be given."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"[{', '.join(f'has(self.{name})' for name in KINDS)}].exists_one(given, given)",
            f"exactly one of {', '.join(KINDS[:-1])} and {KINDS[-1]} must be given",
            lambda engine: sum(getattr(engine, name) is not None for name in KINDS) == 1,
        ),
    )

    transformers: TransformersEngine | None = None
    """The model in the stage's own process."""
    vllm: VLLMEngine | None = None
    """A vLLM of the stage's own."""
    server: ServerEngine | None = None
    """A vLLM on site that runs already."""


IN_PROCESS = Engine(transformers=TransformersEngine())
