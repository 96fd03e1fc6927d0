"""What the options alone give away: `curation.rejectGuessable`.

Generators like some answers: where "pneumonia" is among the options it is nearly always right, and a model learns that
instead of looking (docs/decisions.md, 9). The option prior knows only how often each option text was right in the kept
set. It is cross-fitted over folds of images, so that no item, and no item about its image, has a say in itself.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..prompts.answers import normalise
from ..store.rows import Triplet

FOLDS = 5
#: Pseudo-questions that each option text starts with, right as often as chance: it takes four agreeing questions.
SMOOTHING = 4.0
#: How far P(right | text) of the right option must lie above the next one's for the prior to answer alone.
MARGIN = 0.5


@dataclass(frozen=True)
class _Item:
    fold: int
    options: list[str]
    right: int


class CrossFittedPrior:
    """P(right | option text) over the folds that an item is not in. Items can be taken out again."""

    def __init__(self, triplets: Iterable[Triplet]) -> None:
        self._items: dict[str, _Item] = {}
        self._seen: dict[int, Counter[str]] = defaultdict(Counter)
        self._right: dict[int, Counter[str]] = defaultdict(Counter)
        for row in triplets:
            item = _Item(_fold(row.image_sha256), [normalise(text) for text in row.options], row.answer_index)
            self._items[row.triplet_id] = item
            self._count(item, 1)

    def remove(self, name: str) -> None:
        """Takes an item out."""
        self._count(self._items.pop(name), -1)

    def answers_alone(self, name: str) -> bool:
        """Whether it picks the item's right option with confidence: P(right | text) exceeds the next by `MARGIN`."""
        rates, right = self._rates(name)
        others = [rate for index, rate in enumerate(rates) if index != right]
        return bool(others) and rates[right] - max(others) >= MARGIN

    def accuracy(self) -> float:
        """Share of the items that it answers rightly, ties by chance; 0 of none."""
        points = 0.0
        for name in self._items:
            rates, right = self._rates(name)
            best = [index for index, rate in enumerate(rates) if rate >= max(rates) - 1e-12]
            points += (right in best) / len(best)
        return points / len(self._items) if self._items else 0.0

    def _rates(self, name: str) -> tuple[list[float], int]:
        """P(right | text) of each option, and which is right."""
        item = self._items[name]
        chance = 1 / len(item.options)
        rates = []
        for text in item.options:
            count = self._seen[-1][text] - self._seen[item.fold][text]
            right = self._right[-1][text] - self._right[item.fold][text]
            rates.append((right + SMOOTHING * chance) / (count + SMOOTHING))
        return rates, item.right

    def _count(self, item: _Item, step: int) -> None:
        for fold in (item.fold, -1):  # -1: all of them
            for index, text in enumerate(item.options):
                self._seen[fold][text] += step
                self._right[fold][text] += step * (index == item.right)


def thin(prior: CrossFittedPrior, names: Sequence[str]) -> set[str]:
    """Takes out what the prior answers alone, the last name first, until it answers none of them alone.

    One by one, for each that goes makes the prior less sure: to drop all that it answers at first would leave a set
    in which that option is never right, which gives as much away.

    Returns:
        What was taken out of the prior.
    """
    dropped: set[str] = set()
    while True:
        before = len(dropped)
        for name in reversed(names):
            if name not in dropped and prior.answers_alone(name):
                prior.remove(name)
                dropped.add(name)
        if len(dropped) == before:
            return dropped


def _fold(image: str) -> int:
    return int.from_bytes(hashlib.sha256(f"fold/{image}".encode()).digest()[:4], "big") % FOLDS
