"""The processes of one training, seen from one of them: its rank, and collective operations.

Not accelerate's PartialState: it waits in the default group only, whose short timeout finds a process that hangs, and
it has no `any`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")
#: A wait for the slowest process: the first one may be publishing while the others wait. Lost ones are noticed at once.
_CONTROL_TIMEOUT = timedelta(days=1)


@dataclass(frozen=True)
class ProcessGroup:
    """A stage that runs in one process."""

    rank: int = 0
    count: int = 1
    layout: str = ""
    """How the training is divided up; a checkpoint fits the layout that wrote it only."""

    @property
    def main(self) -> bool:
        """Whether this is the process that reports and publishes."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; the same answer in all of them."""
        return flag

    def barrier(self) -> None:
        """Waits until all processes are here."""

    def broadcast(self, value: T | None) -> T:
        """The main process's value, in all of them; what the others pass does not matter."""
        assert value is not None
        return value


@dataclass(frozen=True)
class TorchProcessGroup(ProcessGroup):
    """One of several processes that torch.distributed connects. All must call the same methods in the same order."""

    group: Any = None
    """For messages between CPUs, beside the default group for tensors."""

    @classmethod
    def create(cls, layout: str) -> TorchProcessGroup:
        """In an initialised torch.distributed."""
        import torch.distributed as dist

        control = dist.new_group(backend="gloo", timeout=_CONTROL_TIMEOUT)
        return cls(dist.get_rank(), dist.get_world_size(), layout, control)

    def any(self, flag: bool) -> bool:
        import torch
        import torch.distributed as dist

        flags = torch.tensor([int(flag)])
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self.group)
        return bool(flags.item())

    def barrier(self) -> None:
        import torch.distributed as dist

        dist.barrier(group=self.group)

    def broadcast(self, value: T | None) -> T:
        import torch
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group, device=torch.device("cpu"))
        return super().broadcast(box[0])
