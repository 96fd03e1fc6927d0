"""The text of a triplet as it is compared: question, options and answer, whatever case, spacing and order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..prompts.answers import normalise
from ..store.rows import AnsweredQuestion

_FEW = 16  # texts that are compared one by one before all that are left are compared at once

Index = NDArray[np.intp]


class NormalisedText(NamedTuple):
    """What a triplet says, normalised."""

    question: str
    options: tuple[str, ...]
    """In alphabetical order."""
    answer: str


def text_of(row: AnsweredQuestion) -> NormalisedText:
    """The text of a triplet."""
    offered = [normalise(option) for option in row.options]
    return NormalisedText(normalise(row.question), tuple(sorted(offered)), offered[row.answer_index])


def shingles(text: NormalisedText) -> frozenset[str]:
    """Pairs of neighbouring words, with the beginning and the end of each part as a word of its own.

    Single words would take "left" for "right" in a long question; three in a row would miss nearly every rewording of
    a question of eight words. The answer counts once more, apart from the options: another answer is another triplet.
    """
    pairs = _pairs("q", text.question)
    for option in text.options:
        pairs += _pairs("o", option)
    return frozenset([*pairs, *_pairs("a", text.answer)])


def _pairs(part: str, text: str) -> list[str]:
    words = [part, *text.split(), ""]
    return [f"{part} {first} {second}" for first, second in pairwise(words)]


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Share of all shingles that both have."""
    common = len(left & right)
    return common / (len(left) + len(right) - common)


class TextIndex:
    """Which of many texts are similar to one, exactly: by their shingles, of which each text is a set."""

    def __init__(self, texts: Sequence[NormalisedText], limit: float) -> None:
        """
        Args:
            texts: T distinct ones.
            limit: least share of all shingles that two must have in common.
        """
        self._texts, self._limit = texts, limit
        self._sets: dict[int, frozenset[str]] = {}

    def any_similar(self, text: int, others: Index) -> bool:
        """Whether a text is similar to any of some others (numbers of texts, in any order)."""
        if self._limit <= 0 or (others == text).any():
            return True
        if self._any_of_few(text, others[:_FEW]):
            return True
        if len(others) <= _FEW:
            return False
        others = self._sharing(text, others[_FEW:])
        if len(others) <= _FEW:
            return self._any_of_few(text, others)
        sizes, mine = self._table.sizes[others], self._table.sizes[text]
        common = self._table.common(text, others)
        return bool((common / (sizes + mine - common) >= self._limit).any())

    def _any_of_few(self, text: int, others: Index) -> bool:
        mine = self._set(text)
        return any(jaccard(mine, self._set(other)) >= self._limit for other in others.tolist())

    def _sharing(self, text: int, others: Index) -> Index:
        """Those of the others that share one of a text's rarest shingles; a similar one cannot lack them all.

        Two texts of which the larger has n shingles share at least n times the limit. So of a text's n shingles any
        n - n * limit + 1 hold one that a similar text has, and the rarest of them the fewest texts have.
        """
        mine = self._table.of(text)
        needed = math.ceil(self._limit * len(mine) - 1e-9)
        rarest = mine[np.argsort(self._table.counts[mine], kind="stable")[: len(mine) - needed + 1]]
        if self._table.counts[rarest].sum() >= len(others):
            return others
        among = np.zeros(len(self._texts), np.bool_)
        among[others] = True
        sharing: Index = np.unique(np.concatenate([self._table.having(shingle) for shingle in rarest.tolist()]))
        return sharing[among[sharing]]

    def _set(self, number: int) -> frozenset[str]:
        if number not in self._sets:
            self._sets[number] = shingles(self._texts[number])
        return self._sets[number]

    @cached_property
    def _table(self) -> _ShingleTable:
        return _ShingleTable(self._texts)


class _ShingleTable:
    """Numbers of the shingles of T texts, one text after another; built when texts are many that look alike."""

    def __init__(self, texts: Sequence[NormalisedText]) -> None:
        numbers: dict[str, int] = {}
        columns = [[numbers.setdefault(piece, len(numbers)) for piece in shingles(text)] for text in texts]
        self.sizes = np.array([len(column) for column in columns], np.int64)
        """(T,) shingles of each text."""
        self._ends = np.cumsum(self.sizes)
        self._flat = np.fromiter(chain.from_iterable(columns), np.intp, count=int(self.sizes.sum()))
        self.counts = np.bincount(self._flat, minlength=len(numbers))
        """Of each shingle: how many texts have it."""
        by_shingle = np.argsort(self._flat, kind="stable")
        self._having = np.repeat(np.arange(len(texts)), self.sizes)[by_shingle]
        self._having_ends = np.cumsum(self.counts)
        self._mine = np.zeros(len(numbers), np.uint8)

    def of(self, text: int) -> Index:
        """The shingles of a text."""
        return self._flat[self._ends[text] - self.sizes[text] : self._ends[text]]

    def having(self, shingle: int) -> Index:
        """The texts that have a shingle."""
        return self._having[self._having_ends[shingle] - self.counts[shingle] : self._having_ends[shingle]]

    def common(self, text: int, others: Index) -> NDArray[np.int64]:
        """How many shingles a text shares with each of some others; each text has at least one."""
        mine = self.of(text)
        self._mine[mine] = 1
        if len(others) * 4 > len(self.sizes):  # rather look at all than gather most
            shared = np.add.reduceat(self._mine[self._flat], self._ends - self.sizes, dtype=np.int64)[others]
        else:
            sizes = self.sizes[others]
            ends = np.cumsum(sizes)
            places = np.arange(ends[-1]) + np.repeat(self._ends[others] - ends, sizes)
            shared = np.add.reduceat(self._mine[self._flat[places]], ends - sizes, dtype=np.int64)
        self._mine[mine] = 0
        return shared
