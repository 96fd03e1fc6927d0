"""Taking the best while no group fills the set: `curation.balance`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

from medgr2_api.curation import Balance


class Grouped(Protocol):
    """What is balanced: a triplet, or a row of candidates."""

    @property
    def modality(self) -> str: ...

    @property
    def question_type(self) -> str: ...


_COLUMNS: dict[str, Callable[[Grouped], str]] = {
    "modality": lambda row: row.modality,
    "questionType": lambda row: row.question_type,
}


@dataclass(frozen=True)
class BalancedSelection:
    """What was taken and what a cap kept out, in the order of preference; what comes after the limit is in neither."""

    kept: list[str]
    capped: list[str]
    share: float
    """Largest share that a group might have: maxShare, or where there are too few groups for that, one over them."""


def group_of(row: Grouped, balance: Balance | None) -> tuple[str, ...]:
    """The group that counts against a cap; without `balance` all are one group."""
    return tuple(_COLUMNS[name](row) for name in balance.by) if balance else ()


def take(
    names: Sequence[str], limit: int | None, group: Callable[[str], Hashable], max_share: float
) -> BalancedSelection:
    """As many as possible, the first of each group first, so that no group is more than `max_share` of what is taken.

    A share is one of the set that remains, and the set shrinks with its largest group: the size T that solves
    T = min(limit, Σ min(n_g, max_share · T)) is found from above, so the set is as large as it can be. Two groups can
    not both stay below 40 %: `max_share` below one over the number of groups means equal groups. Every group may have
    at least one.

    Args:
        names: in the order of preference.
        limit: how many to take at most.
        group: of a name.
        max_share: in (0, 1].
    """
    sizes = Counter(group(name) for name in names)
    share = max(max_share, 1 / max(1, len(sizes)))
    total = len(names) if limit is None else min(limit, len(names))
    while True:
        cap = max(1, math.floor(share * total + 1e-9))
        possible = min(total, sum(min(size, cap) for size in sizes.values()))
        if possible == total:
            break
        total = possible
    kept: list[str] = []
    capped: list[str] = []
    counts: Counter[Hashable] = Counter()
    for name in names:
        if len(kept) == limit:
            break
        if counts[group(name)] == cap:
            capped.append(name)
        else:
            counts[group(name)] += 1
            kept.append(name)
    return BalancedSelection(kept, capped, share)
