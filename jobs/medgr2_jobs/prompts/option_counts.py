"""How often each option text was offered and how often it was right: all that an option prior knows.

Counted in several views, for a view can hide what another shows: a text by its spelling ("liver" always right, "Liver"
never) or normalised; among all questions, or among those of a modality alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from .answer_forms import normalise


def uniform(options: Sequence[str]) -> tuple[str, ...]:
    """The options in a spelling that gives none away: in lower case, without punctuation around them.

    Raises:
        ValueError: two of them then say the same, or one says nothing.
    """
    spelled = tuple(normalise(option) for option in options)
    if len(set(spelled)) < len(spelled) or not all(spelled):
        raise ValueError("two of the options are the same but for their spelling, or one is punctuation alone")
    return spelled


class View(NamedTuple):
    """What counts as the same text, and among which questions."""

    scope: str
    as_spelled: bool

    def texts(self, options: Sequence[str]) -> list[str]:
        """The options as they are told apart."""
        return list(options) if self.as_spelled else [normalise(option) for option in options]


def views(*scopes: str) -> tuple[View, ...]:
    """The views of some scopes, the coarsest first."""
    return tuple(View(scope, as_spelled) for scope in scopes for as_spelled in (False, True))


class OptionCounts:
    """Counts of texts by group."""

    def __init__(self) -> None:
        self._seen: Counter[tuple[object, str]] = Counter()
        self._right: Counter[tuple[object, str]] = Counter()

    def add(self, group: object, texts: Sequence[str], right: int, step: int = 1) -> None:
        """Counts a question; with -1 takes it out again."""
        for index, text in enumerate(texts):
            self._seen[group, text] += step
            self._right[group, text] += step * (index == right)

    def rates(self, group: object, texts: Sequence[str], smoothing: float, less: object = None) -> list[float]:
        """P(right | text) of each text, smoothed towards chance, which an unseen text gets.

        Args:
            group: among which questions.
            texts: the options of one question.
            smoothing: pseudo-questions that each text starts with, right as often as chance.
            less: a group whose counts are taken off.
        """
        chance = 1 / len(texts)
        rates = []
        for text in texts:
            seen, right = self._seen[group, text], self._right[group, text]
            if less is not None:
                seen, right = seen - self._seen[less, text], right - self._right[less, text]
            rates.append((right + smoothing * chance) / (seen + smoothing))
        return rates


def points(rates: Sequence[float], right: int) -> float:
    """How often the likeliest option is the right one: 1 or 0, of ties the share."""
    best = [index for index, rate in enumerate(rates) if rate >= max(rates) - 1e-12]
    return (right in best) / len(best)
