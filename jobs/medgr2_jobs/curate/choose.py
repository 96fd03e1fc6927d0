"""From what may be kept to what is kept: strategy, guessable items, caps. Each drop makes room for the next in line."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from medgr2_api.curation import Curation, SelectionStrategy

from . import balance
from .option_prior_filter import OptionPrior, thin
from .selection import NOT_SCORED, WITHOUT_SCORES, Batch, select

GUESSABLE, BALANCE = "guessable", "balance"


@dataclass(frozen=True)
class Chosen:
    """What is kept, and why the rest is not."""

    kept: list[str]
    reasons: dict[str, list[str]]
    """Reasons of this step by id of each usable candidate, also of those that other rules rule out."""
    counters: dict[str, float]


def choose(
    curation: Curation, batch: Batch, eligible: AbstractSet[str], rows: Mapping[str, Mapping[str, Any]]
) -> Chosen:
    """Applies the strategy, then drops what is guessable and what a cap keeps out.

    Under TopK and RandomK whoever comes next takes the place of what is dropped, so k are kept where there are as many.
    The prior is fitted on the kept set, which the caps shape, and the caps on what the prior leaves: both are repeated
    until neither drops anything; in the end no group is too large and no kept item is guessable.

    Args:
        curation: what is asked for.
        batch: the usable candidates.
        eligible: those of them that nothing else rules out; only they are counted.
        rows: the candidates by id.
    """
    chosen = select(curation.selection, batch)
    columns = balance.columns(curation.balance)
    max_share = curation.balance.max_share if curation.balance else 1.0
    counters = dict(chosen.counters)
    in_line = [name for name in chosen.passed if name in eligible]
    guessable: set[str] = set()

    def group(name: str) -> tuple[Any, ...]:
        return tuple(rows[name][column] for column in columns)

    while True:
        left = [name for name in in_line if name not in guessable]
        taken = balance.take(left, chosen.limit, group, max_share)
        if not curation.reject_guessable:
            break
        prior = OptionPrior(rows[name] for name in taken.kept)
        accuracy = prior.accuracy()
        counters.setdefault("option_prior_before", accuracy)
        counters["option_prior_after"] = accuracy
        dropped = thin(prior, taken.kept)
        if not dropped:
            break
        guessable |= dropped
    if columns:
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
    return Chosen(taken.kept, reasons, counters)
