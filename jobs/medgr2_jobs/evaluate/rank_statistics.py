"""What depends on the order of numbers only.

numpy alone: importing scipy.stats for these three takes 0.6 s of processor time and 74 MiB, sklearn.metrics 1 s.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Rank of each value, from 1; equal values share the mean of theirs. Shape (n,) → (n,)."""
    _, which, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    mean: NDArray[np.float64] = np.cumsum(counts) - (counts - 1) / 2
    return mean[which]


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's correlation of two (n,) arrays, neither of them constant."""
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def auroc(scores: ArrayLike, positive: NDArray[np.bool_]) -> float:
    """Probability that a positive scores above a negative, ties half (Mann-Whitney); both kinds must be there."""
    count = int(positive.sum())
    above = ranks(scores)[positive].sum() - count * (count + 1) / 2
    return float(above / (count * (len(positive) - count)))
