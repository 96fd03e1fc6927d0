"""Checkpoints of a training: where they lie, which of them can be gone on from."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from transformers import TrainingArguments

from ..store import atomic

_log = logging.getLogger(__name__)
_COMPLETE = "medgr2-complete"
#: A `kill -9` costs at most this fraction of a run (an n-th of its steps), and no more time than the request says.
CHECKPOINTS_PER_RUN = 5


def place_checkpoints(args: TrainingArguments, total_steps: int, *, spread: bool, every: int = 1) -> None:
    """Sets `save_steps`, once the arguments and the data have told how long the run is.

    Args:
        args: the trainer's; changed.
        total_steps: optimizer steps of the whole run.
        spread: place `CHECKPOINTS_PER_RUN` of them evenly; otherwise keep what the user asked for.
        every: save only at multiples of this many steps: rounds up.
    """
    interval = total_steps / CHECKPOINTS_PER_RUN if spread else args.save_steps
    if interval < 1 and not spread:  # transformers reads a fraction as a share of the run
        interval *= total_steps
    args.save_steps = max(1, math.ceil(interval / every)) * every


def latest_checkpoint(folder: Path, layout: str = "") -> Path | None:
    """The newest checkpoint that can be gone on from; half-written ones (a kill, a full disk) are passed over, and so
    are those of another number of processes: they divide the data and the optimizer up differently."""
    checkpoints = [
        (int(path.name.rsplit("-", 1)[1]), path) for path in folder.glob("checkpoint-*") if _usable(path, layout)
    ]
    return max(checkpoints)[1] if checkpoints else None


def remove_torn_checkpoints(folder: Path, layout: str = "") -> None:
    """Removes the others: transformers would count them among those it keeps, and drop a usable one."""
    for path in folder.glob("checkpoint-*"):
        if not _usable(path, layout):
            _log.warning("%s: not complete, or of another number of processes; removed", path)
            atomic.remove_tree(path)


def _usable(checkpoint: Path, layout: str) -> bool:
    """Whether it was written to its end, by as many processes (`ProcessGroup.layout`)."""
    mark = checkpoint / _COMPLETE
    return mark.is_file() and mark.read_text() == layout


def mark_complete(checkpoint: Path, layout: str) -> None:
    """Says that every process (`ProcessGroup.layout`) has written its part, and that it is durable."""
    atomic.write_text(checkpoint / _COMPLETE, layout)
