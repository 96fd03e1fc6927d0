"""Which candidates must not become training data, whatever their score: doubles, and held-out images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..answers import normalise
from ..data.splits import TRAIN, VALIDATION

DUPLICATE = "duplicate"
OVERLAP = "overlap"
BENCHMARK_IMAGE = "benchmark_image"
VALIDATION_IMAGE = "validation_image"

Key = tuple[str, str]


def key(row: Mapping[str, Any]) -> Key:
    """Two triplets are the same when they ask the same about the same image (DECISIONS 8)."""
    return row["image_sha256"], normalise(row["question"])


def held_out(images: Iterable[Mapping[str, Any]], items: Iterable[Mapping[str, Any]]) -> dict[str, set[str]]:
    """Images that must never be trained on, by the reason that is given for it."""
    found: dict[str, set[str]] = {BENCHMARK_IMAGE: set(), VALIDATION_IMAGE: set()}
    for row in (*images, *items):
        if row["split"] == VALIDATION:
            found[VALIDATION_IMAGE].add(row["image_sha256"])
        elif row["split"] != TRAIN:
            found[BENCHMARK_IMAGE].add(row["image_sha256"])
    return found


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
