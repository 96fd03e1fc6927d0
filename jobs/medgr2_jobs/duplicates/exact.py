"""The same triplet twice: within a batch, and already in the training set (DECISIONS 8)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..prompts.answers import normalise

Key = tuple[str, str]


def key(row: Mapping[str, Any]) -> Key:
    """Two triplets are the same when they ask the same about the same image."""
    return row["image_sha256"], normalise(row["question"])


def duplicates(rows: Iterable[Mapping[str, Any]], scores: Mapping[str, float]) -> set[str]:
    """Ids of the rows that another row of the batch stands for: of equals the best scored, then the first, stays."""
    best: dict[Key, tuple[float, str]] = {}
    doubles: set[str] = set()
    for row in rows:
        name, score = row["triplet_id"], scores.get(row["triplet_id"], float("-inf"))
        held = best.get(key(row))
        if held is None:
            best[key(row)] = (score, name)
        elif score > held[0]:
            best[key(row)] = (score, name)
            doubles.add(held[1])
        else:
            doubles.add(name)
    return doubles
