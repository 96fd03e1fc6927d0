"""What the options alone give away: `curation.rejectGuessable`.

Generators like some answers: where "pneumonia" is among the options it is nearly always right, and a model learns that
instead of looking (docs/decisions.md, 9). The option prior knows only how often each option text was right in the kept
set, as it is spelled and normalised, over all modalities and in each. It is cross-fitted over folds of images, so that
no item, and no item about its image, has a say in itself.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..prompts.option_counts import OptionCounts, View, points, views
from ..store.rows.candidates import Triplet

FOLDS = 5
#: Pseudo-questions that each option text starts with, right as often as chance: it takes four agreeing questions.
SMOOTHING = 4.0
#: How far P(right | text) of the right option must lie above the next one's for the prior to answer alone.
MARGIN = 0.5
_MODALITY = "modality"
_VIEWS = views("all", _MODALITY)


@dataclass(frozen=True)
class _Item:
    fold: int
    modality: str
    options: tuple[str, ...]
    right: int

    def group(self, view: View) -> str:
        """Among which questions it is counted."""
        return self.modality if view.scope == _MODALITY else ""


class CrossFittedPrior:
    """P(right | option text) over the folds that an item is not in. Items can be taken out again.

    In four views, for one hides what another shows: the texts as they are spelled or normalised, over all items or
    those of the modality.
    """

    def __init__(self, triplets: Iterable[Triplet]) -> None:
        self._items: dict[str, _Item] = {}
        self._counts = {view: OptionCounts() for view in _VIEWS}
        for row in triplets:
            item = _Item(_fold(row.image_sha256), row.modality, row.options, row.answer_index)
            self._items[row.triplet_id] = item
            self._count(item, 1)

    def remove(self, name: str) -> None:
        """Takes an item out."""
        self._count(self._items.pop(name), -1)

    def answers_alone(self, name: str) -> bool:
        """Whether a view picks the right option with confidence: P(right | text) exceeds the next by `MARGIN`."""
        item = self._items[name]
        return any(_margin(self._rates(item, view), item.right) >= MARGIN for view in _VIEWS)

    def accuracy(self) -> float:
        """Share of the items that it answers rightly, ties by chance: of each modality by the view that answers most of
        them; 0 of none."""
        answered: dict[str, dict[View, float]] = defaultdict(lambda: dict.fromkeys(_VIEWS, 0.0))
        for item in self._items.values():
            for view in _VIEWS:
                answered[item.modality][view] += points(self._rates(item, view), item.right)
        right = sum(max(by_view.values()) for by_view in answered.values())
        return right / len(self._items) if self._items else 0.0

    def _rates(self, item: _Item, view: View) -> list[float]:
        """P(right | text) of each option."""
        group = item.group(view)
        return self._counts[view].rates(group, view.texts(item.options), SMOOTHING, less=(group, item.fold))

    def _count(self, item: _Item, step: int) -> None:
        for view, counts in self._counts.items():
            texts, group = view.texts(item.options), item.group(view)
            for among in (group, (group, item.fold)):
                counts.add(among, texts, item.right, step)


def _margin(rates: Sequence[float], right: int) -> float:
    """How far P(right | text) of the right option lies above the next one's; 0 where it is the only one."""
    others = [rate for index, rate in enumerate(rates) if index != right]
    return rates[right] - max(others) if others else 0.0


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
