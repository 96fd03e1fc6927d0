"""From what may be kept to what is kept: strategy, guessable items, caps. Each drop makes room for the next in line.

A strategy says which candidates it lets through, and in which order it prefers them: one function each.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import assert_never

from medgr2_api.curation import (
    ResolvedCuration,
    ResolvedSelection,
    SelectAll,
    SelectByPrecision,
    SelectByThreshold,
    SelectionStrategy,
    SelectRandomK,
    SelectTopK,
)

from ..errors import ConfigError, DataError
from ..store.rows.candidates import Triplet
from ..store.rows.training import CalibrationRow
from . import balance
from .option_prior_filter import CrossFittedPrior, thin

NOT_SCORED = "not_scored"
GUESSABLE, BALANCE = "guessable", "balance"
#: Reasons that say no more than that R's score is not high enough.
BY_SCORE = frozenset({"below_threshold", "not_in_top_k"})
#: What an expert says: the triplet is of no use; its answer is wrong, and another one right.
VETOED, WRONG_ANSWER = "vetoed", "wrong_answer"
#: Reasons that are about the answer alone: the question may be asked again.
ABOUT_THE_ANSWER = BY_SCORE | {WRONG_ANSWER}
#: Target from which on a graded row counts as good: original (10) and lightly perturbed (6).
GOOD_TARGET = 6.0
#: Strategies that work without scores.
WITHOUT_SCORES = frozenset({SelectionStrategy.ALL, SelectionStrategy.RANDOM_K})


@dataclass(frozen=True)
class CandidateBatch:
    """What a strategy sees."""

    ids: Sequence[str]
    """Candidates with a usable answer."""
    scores: Mapping[str, float]
    calibration: Sequence[CalibrationRow] | None
    """Held-out graded rows with R's scores."""
    seed: int


@dataclass(frozen=True)
class StrategyResult:
    """A strategy's choice."""

    passed: Sequence[str]
    """Ids that the strategy would keep, those it prefers first."""
    reason: str = ""
    """Why the others are not kept."""
    limit: int | None = None
    """How many to keep at most; None: all of them."""
    counters: dict[str, float] = field(default_factory=dict)


def select(selection: ResolvedSelection, batch: CandidateBatch) -> StrategyResult:
    """Applies the strategy of the spec.

    Raises:
        ConfigError: what the strategy needs to read is missing.
        DataError: FittedPrecision has no graded rows to fit on.
    """
    match selection:
        case SelectAll():
            return StrategyResult(_best_first(batch.ids, batch))
        case SelectByThreshold():
            return _above(selection.threshold, batch, {})
        case SelectByPrecision():
            return _above_fitted(selection.precision, batch)
        case SelectTopK():
            scored = [name for name in batch.ids if name in batch.scores]
            return StrategyResult(_best_first(scored, batch), "not_in_top_k", selection.k)
        case SelectRandomK():
            return StrategyResult(_at_random(batch), "not_in_random_k", selection.k)
        case _:
            assert_never(selection)


def fit_threshold(rows: Sequence[CalibrationRow], precision: float) -> tuple[float, float]:
    """The smallest threshold above which at least `precision` of the graded rows are good.

    It lies half-way between two neighbouring scores. Where no threshold gets there, it is the one that gets nearest,
    and of several such the smallest.

    Returns:
        The threshold, and the precision above it on these rows.
    """
    steps = sorted({row.score for row in rows}, reverse=True)
    good = dict.fromkeys(steps, 0)
    total = dict.fromkeys(steps, 0)
    for row in rows:
        total[row.score] += 1
        good[row.score] += row.target >= GOOD_TARGET
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


def _best_first(names: Sequence[str], batch: CandidateBatch) -> list[str]:
    """The best scored first, ties by id."""
    return sorted(names, key=lambda name: (-batch.scores.get(name, -math.inf), name))


def _above_fitted(precision: float, batch: CandidateBatch) -> StrategyResult:
    if batch.calibration is None:
        raise ConfigError("strategy FittedPrecision reads the reward model's calibration table; no input 'reward'")
    rows = [row for row in batch.calibration if math.isfinite(row.score)]
    if not any(row.target >= GOOD_TARGET for row in rows):
        raise DataError(
            "the reward model's calibration table has no scored good row, so no threshold can be fitted; "
            "raise data.split.validationFraction, or use strategy Threshold"
        )
    threshold, share = fit_threshold(rows, precision)
    fitted = {
        "calibration_rows": len(rows),
        "calibration_precision": share,
        "precision_reached": float(share >= precision),
    }
    return _above(threshold, batch, fitted)


def _above(threshold: float, batch: CandidateBatch, counters: dict[str, float]) -> StrategyResult:
    passed = [name for name in batch.ids if batch.scores.get(name, -math.inf) > threshold]
    return StrategyResult(_best_first(passed, batch), "below_threshold", counters={"threshold": threshold, **counters})


def _at_random(batch: CandidateBatch) -> list[str]:
    def lot(name: str) -> bytes:
        return hashlib.sha256(f"random-k/{batch.seed}/{name}".encode()).digest()

    return sorted(batch.ids, key=lot)


@dataclass(frozen=True)
class SelectionResult:
    """What is kept, and why the rest is not."""

    kept: list[str]
    reasons: dict[str, list[str]]
    """Reasons of this step by id of each usable candidate, also of those that other rules rule out."""
    counters: dict[str, float]


def choose(
    curation: ResolvedCuration, batch: CandidateBatch, eligible: AbstractSet[str], triplets: Mapping[str, Triplet]
) -> SelectionResult:
    """Applies the strategy, then drops what is guessable and what a cap keeps out.

    Under TopK and RandomK whoever comes next takes the place of what is dropped, so k are kept where there are as many.
    The prior is fitted on the kept set, which the caps shape, and the caps on what the prior leaves: both are repeated
    until neither drops anything; in the end no group is too large and no kept item is guessable.

    Args:
        curation: what is asked for.
        batch: the usable candidates.
        eligible: those of them that nothing else rules out; only they are counted.
        triplets: the usable candidates by id.
    """
    chosen = select(curation.selection, batch)
    max_share = curation.balance.max_share if curation.balance else 1.0
    counters = dict(chosen.counters)
    in_line = [name for name in chosen.passed if name in eligible]
    guessable: set[str] = set()

    def group(name: str) -> tuple[str, ...]:
        return balance.group_of(triplets[name], curation.balance)

    while True:
        left = [name for name in in_line if name not in guessable]
        taken = balance.take(left, chosen.limit, group, max_share)
        if not curation.reject_guessable:
            break
        prior = CrossFittedPrior(triplets[name] for name in taken.kept)
        accuracy = prior.accuracy()
        counters.setdefault("option_prior_before", accuracy)
        counters["option_prior_after"] = accuracy
        dropped = thin(prior, taken.kept)
        if not dropped:
            break
        guessable |= dropped
    if curation.balance and curation.balance.by:
        counters["balance_max_share"] = taken.share
    if curation.selection.strategy is SelectionStrategy.TOP_K and taken.kept:
        counters["lowest_kept_score"] = min(batch.scores[name] for name in taken.kept)

    reached = chosen.passed
    if chosen.limit is not None and len(taken.kept) == chosen.limit:
        reached = chosen.passed[: chosen.passed.index(taken.kept[-1]) + 1 if taken.kept else 0]
    let_through, capped = set(reached), set(taken.capped)
    scored = curation.selection.strategy not in WITHOUT_SCORES
    reasons: dict[str, list[str]] = {}
    for name in batch.ids:
        if scored and name not in batch.scores:
            reasons[name] = [NOT_SCORED]
        elif name not in let_through:
            reasons[name] = [chosen.reason]
        else:
            reasons[name] = [GUESSABLE] * (name in guessable) + [BALANCE] * (name in capped)
    return SelectionResult(taken.kept, reasons, counters)
