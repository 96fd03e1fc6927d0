"""What is reckoned with, and what comes of it for one stage."""

from __future__ import annotations

from dataclasses import dataclass

from .gpus import GPU
from .memory import Need
from .shapes import ModelShape


@dataclass(frozen=True)
class ModelShapes:
    """The shapes of a cycle's models."""

    policy: ModelShape
    reward: ModelShape
    student: ModelShape | None = None
    """Where it is another than the policy's."""
    generator: ModelShape | None = None
    """Of a vLLM that runs beside stage generate."""


@dataclass(frozen=True)
class Hardware:
    """What is given from outside the spec."""

    gpu: GPU | None = None
    """Kind of GPU, for stages whose nodes do not tell theirs."""
    local_gpus: int = 0
    """GPUs of the computer of `medgr2 run`, for stages that ask for none."""
    host_memory: float = 0.0
    """Bytes of main memory there; 0: not told."""


@dataclass(frozen=True)
class StageFit:
    """One run of one stage."""

    name: str
    runs: int
    """How often in the cycle."""
    processes: int
    gpus: float
    """GPUs that it holds, over all its pods and shards."""
    gpu: GPU | None
    need: Need
    """Of one process: on its GPU, or in main memory where it has none."""
    limit: float
    """Bytes that there are for it; 0: not told."""
    host: Need | None
    """Main memory of one pod, where its processes use GPUs."""
    host_limit: float
    seconds: float
    """On the clock; NaN: not known."""
    advice: tuple[str, ...] = ()
    """What to change; where it does not fit, each was reckoned to."""
    problem: str = ""
    """Why it does not fit, if not for memory."""

    @property
    def gpu_hours(self) -> float:
        """What it holds for as long as it runs."""
        return self.gpus * self.seconds / 3600

    @property
    def fits(self) -> bool:
        """Whether there is enough of all that is told."""
        return not (self.problem or _over(self.need, self.limit) or _over(self.host, self.host_limit))


def _over(need: Need | None, limit: float) -> bool:
    return need is not None and 0 < limit < need.total
