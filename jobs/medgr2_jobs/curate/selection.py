"""Which candidates a strategy lets through, and in which order it prefers them: one function each, in one table."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medgr2_api.curation import Selection, SelectionStrategy

from ..errors import ConfigError, DataError

NOT_SCORED = "not_scored"
#: Target from which on a graded row counts as good: original (10) and lightly perturbed (6).
GOOD_TARGET = 6.0
#: Strategies that work without scores.
WITHOUT_SCORES = frozenset({SelectionStrategy.ALL, SelectionStrategy.RANDOM_K})


@dataclass(frozen=True)
class Batch:
    """What a strategy sees."""

    ids: Sequence[str]
    """Candidates with a usable answer."""
    scores: Mapping[str, float]
    calibration: Sequence[Mapping[str, Any]] | None
    """Held-out graded rows with R's scores: `target`, `score`."""
    seed: int


@dataclass(frozen=True)
class Selected:
    """A strategy's choice."""

    passed: Sequence[str]
    """Ids that the strategy would keep, those it prefers first."""
    reason: str = ""
    """Why the others are not kept."""
    limit: int | None = None
    """How many to keep at most; None: all of them."""
    counters: dict[str, float] = field(default_factory=dict)


def select(selection: Selection, batch: Batch) -> Selected:
    """Applies the strategy of the spec.

    Raises:
        ConfigError: a parameter of the strategy, or what it needs to read, is missing.
        DataError: FittedPrecision has no graded rows to fit on.
    """
    if selection.strategy is None:
        raise ConfigError("curation.selection.strategy must be given")
    return STRATEGIES[selection.strategy](selection, batch)


def fit_threshold(rows: Sequence[Mapping[str, Any]], precision: float) -> tuple[float, float]:
    """The smallest threshold above which at least `precision` of the graded rows are good.

    It lies half-way between two neighbouring scores. Where no threshold gets there, it is the one that gets nearest,
    and of several such the smallest.

    Returns:
        The threshold, and the precision above it on these rows.
    """
    steps = sorted({row["score"] for row in rows}, reverse=True)
    good = dict.fromkeys(steps, 0)
    total = dict.fromkeys(steps, 0)
    for row in rows:
        total[row["score"]] += 1
        good[row["score"]] += row["target"] >= GOOD_TARGET
    above = above_good = 0
    reached: tuple[float, float] | None = None
    best = (math.inf, 0.0)
    for step, lower in zip(steps, [*steps[1:], None], strict=True):
        above, above_good = above + total[step], above_good + good[step]
        share = above_good / above
        # below the lowest score nothing is known: the threshold stays right under it
        threshold = math.nextafter(step, -math.inf) if lower is None else _between(lower, step)
        if share >= precision:
            reached = (threshold, share)
        if share >= best[1]:
            best = (threshold, share)
    return reached or best


def _between(lower: float, upper: float) -> float:
    """The middle; never `upper` itself, which rounding may make of it."""
    middle = lower + (upper - lower) / 2
    return middle if middle < upper else lower


def _best_first(names: Sequence[str], batch: Batch) -> list[str]:
    """The best scored first, ties by id."""
    return sorted(names, key=lambda name: (-batch.scores.get(name, -math.inf), name))


def _all(_: Selection, batch: Batch) -> Selected:
    return Selected(_best_first(batch.ids, batch))


def _threshold(selection: Selection, batch: Batch) -> Selected:
    if selection.threshold is None:
        raise ConfigError("curation.selection.threshold must be given for strategy Threshold")
    return _above(selection.threshold, batch, {})


def _fitted_precision(selection: Selection, batch: Batch) -> Selected:
    if selection.precision is None:
        raise ConfigError("curation.selection.precision must be given for strategy FittedPrecision")
    if batch.calibration is None:
        raise ConfigError("strategy FittedPrecision reads the reward model's calibration table; no input 'reward'")
    rows = [row for row in batch.calibration if row["score"] is not None and math.isfinite(row["score"])]
    if not any(row["target"] >= GOOD_TARGET for row in rows):
        raise DataError(
            "the reward model's calibration table has no scored good row, so no threshold can be fitted; "
            "raise data.split.validationFraction, or use strategy Threshold"
        )
    threshold, share = fit_threshold(rows, selection.precision)
    fitted = {
        "calibration_rows": len(rows),
        "calibration_precision": share,
        "precision_reached": float(share >= selection.precision),
    }
    return _above(threshold, batch, fitted)


def _above(threshold: float, batch: Batch, counters: dict[str, float]) -> Selected:
    passed = [name for name in batch.ids if batch.scores.get(name, -math.inf) > threshold]
    return Selected(_best_first(passed, batch), "below_threshold", counters={"threshold": threshold, **counters})


def _top_k(selection: Selection, batch: Batch) -> Selected:
    scored = [name for name in batch.ids if name in batch.scores]
    return Selected(_best_first(scored, batch), "not_in_top_k", _k(selection))


def _random_k(selection: Selection, batch: Batch) -> Selected:
    def lot(name: str) -> bytes:
        return hashlib.sha256(f"random-k/{batch.seed}/{name}".encode()).digest()

    return Selected(sorted(batch.ids, key=lot), "not_in_random_k", _k(selection))


def _k(selection: Selection) -> int:
    if selection.k is None:
        raise ConfigError(f"curation.selection.k must be given for strategy {selection.strategy}")
    return selection.k


STRATEGIES: dict[SelectionStrategy, Callable[[Selection, Batch], Selected]] = {
    SelectionStrategy.ALL: _all,
    SelectionStrategy.THRESHOLD: _threshold,
    SelectionStrategy.FITTED_PRECISION: _fitted_precision,
    SelectionStrategy.TOP_K: _top_k,
    SelectionStrategy.RANDOM_K: _random_k,
}
