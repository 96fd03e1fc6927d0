"""How many processes the operator asks for, and the endpoint of their rendezvous."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from medgr2_api.scheduling import DeepSpeed
from medgr2_api.stage_contract import (
    DEEPSPEED_ENV,
    INDEX_ENV,
    NUM_NODES_ENV,
    NUM_PROC_PER_NODE_ENV,
    RDZV_ENDPOINT_ENV,
    RDZV_ID_ENV,
    RDZV_TIMEOUT_ENV,
)

from ...errors import ConfigError

_TIMEOUT = 600.0  # seconds: pods of one Job may have to wait for nodes and images


@dataclass(frozen=True)
class Rendezvous:
    """The processes of one distributed stage, and where they meet."""

    nodes: int = 1
    processes: int = 1
    """On each node."""
    index: int = 0
    """Number of this node."""
    endpoint: str = ""
    """`host:port` of node 0."""
    name: str = ""
    """Of the attempt."""
    deepspeed: DeepSpeed | None = None
    timeout: float = _TIMEOUT
    """Seconds to wait for the other nodes."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Rendezvous:
        """What the operator has put into the environment.

        Raises:
            ConfigError: it makes no sense.
        """
        try:
            rendezvous = cls(
                nodes=int(environment.get(NUM_NODES_ENV, 1)),
                processes=int(environment.get(NUM_PROC_PER_NODE_ENV, 1)),
                endpoint=environment.get(RDZV_ENDPOINT_ENV, ""),
                name=environment.get(RDZV_ID_ENV, ""),
                deepspeed=DeepSpeed(environment[DEEPSPEED_ENV]) if environment.get(DEEPSPEED_ENV) else None,
                timeout=float(environment.get(RDZV_TIMEOUT_ENV, _TIMEOUT)),
                # of a sharded stage on one node each, the index is the shard's
                index=int(environment.get(INDEX_ENV, 0)) if int(environment.get(NUM_NODES_ENV, 1)) > 1 else 0,
            )
        except ValueError as error:
            raise ConfigError(f"the variables for several processes make no sense: {error}") from None
        if rendezvous.nodes > 1 and not (rendezvous.endpoint and rendezvous.name and INDEX_ENV in environment):
            raise ConfigError(f"{NUM_NODES_ENV} needs {RDZV_ENDPOINT_ENV}, {RDZV_ID_ENV} and {INDEX_ENV}")
        return rendezvous

    @property
    def needs_torchrun(self) -> bool:
        """Whether this is more than a plain process: several of them, or DeepSpeed, which wants a group even alone."""
        return self.nodes * self.processes > 1 or self.deepspeed is not None

    @property
    def layout(self) -> str:
        """How a training is divided up: what a checkpoint has to fit."""
        return f"{self.nodes * self.processes} {self.deepspeed or 'DDP'}"
