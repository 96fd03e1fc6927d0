"""Which pictures and which tasks are whose: by hash, so that it is the same in every iteration. Needs no torch."""

from __future__ import annotations

import hashlib

from ..generate.sampling_plan import Task

#: Of the pictures every n-th, by hash, is the probe's: no student ever learns from it, and the first generator answers
#: its tasks as long as it is asked at all, so that each student is measured against it.
PROBE_EVERY = 10


def in_probe(image_sha256: str) -> bool:
    """Whether students are measured on this picture, and never learn from it."""
    return _lot("probe", image_sha256) % PROBE_EVERY == 0


def is_students(task: Task, share: float) -> bool:
    """Whether the student is asked this task, not the generator beside it.

    Args:
        task: a task of any iteration.
        share: of the tasks that are the student's; 1: all of them, the probe's too.
    """
    if share >= 1:
        return True
    return not in_probe(task.image_sha256) and _lot("task", task.triplet_id, task.image_sha256) < share * 2**32


def _lot(*words: str) -> int:
    """In [0, 2^32)."""
    return int.from_bytes(hashlib.sha256("/".join(words).encode()).digest()[:4], "big")
