"""Clusters of images that look alike, as the slices of a volume do: the worst case of near-duplicates."""

from __future__ import annotations

import numpy as np

from medgr2_jobs.store.rows.candidates import Triplet
from tests.support.curate_fixtures import triplet

WORDS = ("left", "right", "lung", "kidney", "mass", "cyst")
SHAPES = ("all equal", "each its own word", "chains", "two clusters", "just beyond the limit", "beyond the limit")


def cluster(shape: str, count: int) -> tuple[list[Triplet], dict[str, str]]:
    """So many triplets in one cluster of images, and the perceptual hashes of those.

    Their texts are equal, differ in a word or two, or lie just or well beyond the usual limit; their images are a few
    bits from one centre, from one of two, or each from the next.
    """
    random = np.random.default_rng(7)
    made, phashes = [], {}
    for n in range(count):
        centre = (1 << 63) - 1 if shape == "two clusters" and n % 2 else 0
        flips = {n % 64, n // 64 % 64} if shape == "chains" else set(random.choice(64, n % 3, replace=False).tolist())
        phashes[f"i{n}"] = f"{centre ^ sum(1 << int(bit) for bit in flips):016x}"
        words = [*WORDS] * 3
        if shape == "beyond the limit":
            words += [f"slice{n}a", f"slice{n}b", f"slice{n}c"]
        elif shape == "just beyond the limit":
            words = [*"abcde", f"slice{n}", *"fgh"]
        elif shape == "each its own word":
            words = [*"abcdefghijklm", f"slice{n}", *"nopqrst"]
        elif shape != "all equal":
            words[n % len(words)] = f"word{n % 5}"
        made.append(triplet(str(n), f"i{n}", " ".join(words), options=("cyst", "mass"), answer_index=n % 2))
    return made, phashes
