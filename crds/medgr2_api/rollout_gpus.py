"""How the GPUs of stage grpo are shared out between what it trains and the vLLM that samples for it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from . import accelerators
from .cycle import CycleSpec
from .scheduling import MAX_PROCESSES
from .stages import GRPO


@dataclass(frozen=True)
class RolloutShare:
    """Of one pod, or of a stage of one run."""

    processes: int
    """That train, each with a GPU of its own where there are any."""
    server: int = 0
    """GPUs of the vLLM."""
    gpus: int = 0
    """All of them; 0: there are none, as far as the spec says."""
    served: bool = False
    """Whether there is a vLLM of the stage's own; without GPUs it runs on processors."""

    @property
    def of_server(self) -> Fraction:
        """The vLLM's share of a pod's resources. 0 without GPUs: it gets what a container has that says nothing."""
        return Fraction(self.server, self.gpus) if self.gpus else Fraction(0)


def share(spec: CycleSpec, name: str, gpus: int | None = None) -> RolloutShare:
    """Who gets what.

    Args:
        spec: the cycle's.
        name: a stage; any but grpo keeps all of its GPUs.
        gpus: that it has; None: as its `resources` say.
    """
    settings, vllm = spec.stage(name), spec.policy.engine.vllm
    if name != GRPO.name or vllm is None or vllm.rollout_gpus == 0:
        return RolloutShare(settings.processes(spec.budget))
    if gpus is None:
        gpus = accelerators.whole_gpus(settings.resources, spec.budget.gpus_per)
    told = settings.num_proc_per_node
    if gpus == 0:
        return RolloutShare(told or 1, vllm.rollout_gpus or 0, served=True)
    server = vllm.rollout_gpus or (max(0, gpus - told) if told else gpus // 2)
    server = min(server, gpus - 1)  # one GPU cannot be divided: the policy samples in the process that trains it
    return RolloutShare(told or min(gpus - server, MAX_PROCESSES), server, gpus, served=server > 0)
