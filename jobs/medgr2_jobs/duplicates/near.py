"""Triplets that say the same, and those whose images and whose texts are both nearly the same (docs/decisions.md, 8).

For the near ones, rows with the same hash and the same text are one unit. Each unit is compared with those that it has
to be told from, bit by bit and shingle by shingle, so the two limits mean what they say; pairs are never listed, for in
a cluster of images that all look alike there are as many as its square.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medgr2_api.curation import NearDuplicates

from ..prompts.answers import normalise
from ..store.rows import AnsweredQuestion, Question
from ..store.rows.candidates import Triplet
from . import phash_index
from .phash_index import CloseImages, ImageCodes, Index
from .text_fingerprint import NormalisedText, TextIndex, text_of

TripletKey = tuple[str, str]


def triplet_key(row: Question) -> TripletKey:
    """Two triplets are the same when they ask the same about the same image."""
    return row.image_sha256, normalise(row.question)


def exact_duplicates(rows: Iterable[Triplet], scores: Mapping[str, float]) -> set[str]:
    """Ids of the rows that another row of the batch stands for: of equals the best scored, then the first, stays."""
    best: dict[TripletKey, tuple[float, str]] = {}
    doubles: set[str] = set()
    for row in rows:
        name, score = row.triplet_id, scores.get(row.triplet_id, float("-inf"))
        key = triplet_key(row)
        held = best.get(key)
        if held is None:
            best[key] = (score, name)
        elif score > held[0]:
            best[key] = (score, name)
            doubles.add(held[1])
        else:
            doubles.add(name)
    return doubles


@dataclass(frozen=True)
class _Units:
    """Distinct (image hash, text) of a table."""

    of_row: Index
    codes: ImageCodes
    text: Index
    """Number of its text in the index."""


class NearIndex:
    """Which rows of two tables are near each other."""

    def __init__(
        self,
        rows: Sequence[AnsweredQuestion],
        others: Sequence[AnsweredQuestion],
        phashes: Mapping[str, str],
        limits: NearDuplicates,
    ) -> None:
        """
        Args:
            rows: the candidates, N.
            others: what they are compared with besides each other.
            phashes: perceptual hash of each image that has one.
            limits: how near.
        """
        self._limit = limits.image_hamming
        numbers: dict[NormalisedText, int] = {}
        self._rows, self._others = (
            _units(
                phash_index.codes([row.image_sha256 for row in table], phashes),
                np.array([numbers.setdefault(text_of(row), len(numbers)) for row in table], np.intp),
            )
            for table in (rows, others)
        )
        self._texts = TextIndex(list(numbers), limits.text_jaccard)

    def near_others(self) -> NDArray[np.bool_]:
        """For each of N rows whether any of the others is near it."""
        close = CloseImages(self._rows.codes, self._others.codes, self._limit)
        near = [self._near(unit, close, self._others) for unit in range(len(self._rows.text))]
        return np.array(near, np.bool_)[self._rows.of_row]

    def near_kept(self, order: Iterable[int], may_keep: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """For each of N rows whether one that comes before it, and stays, is near it.

        Args:
            order: the rows, the best first.
            may_keep: rows that nothing else rules out: no other row is dropped for the sake of one that is.
        """
        close = CloseImages(self._rows.codes, self._rows.codes, self._limit)
        duplicate = np.zeros(len(may_keep), np.bool_)
        kept = np.zeros(len(self._rows.text), np.bool_)
        for row in order:
            unit = int(self._rows.of_row[row])
            if self._near(unit, close, self._rows, kept):
                duplicate[row] = True
            elif may_keep[row]:
                kept[unit] = True
        return duplicate

    def _near(self, unit: int, close: CloseImages, held: _Units, among: NDArray[np.bool_] | None = None) -> bool:
        """Whether any held unit is near one of the candidates'."""
        text = int(self._rows.text[unit])
        return any(self._texts.any_similar(text, held.text[places]) for places in close.of(unit, among))


def _units(codes: ImageCodes, text: Index) -> _Units:
    key = np.stack([codes.bits, codes.hashed.astype(np.uint64), text.astype(np.uint64)], axis=1)
    _, first, of_row = np.unique(key, axis=0, return_index=True, return_inverse=True)
    return _Units(of_row.reshape(-1), codes.take(first), text[first])
