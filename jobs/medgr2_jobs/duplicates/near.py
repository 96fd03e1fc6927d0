"""Triplets that say the same, and those whose images and whose texts are both nearly the same (docs/decisions.md, 8).

For the near ones, rows with the same hash and the same text are one unit. Units are a candidate pair when they agree in
a band of the image's hash and in a band of the text's MinHash; each pair is then checked, bit by bit and shingle by
shingle, so the two limits mean what they say. Bands of the image miss nothing; those of the text one pair in a thousand
at the limit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from medgr2_api.curation import NearDuplicates

from ..prompts.answers import normalise
from ..store.rows import AnsweredQuestion, Question, Triplet
from . import phash_index, text_fingerprint
from .phash_index import ImageCodes, Index, Keys
from .text_fingerprint import NormalisedText

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
    image_bands: list[Keys]
    text_bands: list[Keys]

    def keys(self) -> Iterator[Keys]:
        """Of which two near units share at least one: a band of the image with a band of the text."""
        return (text_fingerprint.mixed([image, text]) for image, text in product(self.image_bands, self.text_bands))


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
        self._limits = limits
        numbers: dict[NormalisedText, int] = {}
        tables = [
            [numbers.setdefault(text_fingerprint.text_of(row), len(numbers)) for row in table]
            for table in (rows, others)
        ]
        self._texts = list(numbers)
        text_bands = text_fingerprint.bands(self._texts, limits.text_jaccard)
        self._rows, self._others = (
            _units(
                phash_index.codes([row.image_sha256 for row in table], phashes),
                np.array(text, np.intp),
                text_bands,
                limits.image_hamming,
            )
            for table, text in zip((rows, others), tables, strict=True)
        )
        self._shingles: dict[int, frozenset[str]] = {}

    def near_others(self) -> NDArray[np.bool_]:
        """For each of N rows whether any of the others is near it."""
        left, _ = self._pairs(self._rows, self._others)
        near = np.zeros(len(self._rows.text), np.bool_)
        near[left] = True
        return near[self._rows.of_row]

    def near_kept(self, order: Iterable[int], may_keep: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """For each of N rows whether one that comes before it, and stays, is near it.

        Args:
            order: the rows, the best first.
            may_keep: rows that nothing else rules out: no other row is dropped for the sake of one that is.
        """
        neighbours: dict[int, list[int]] = defaultdict(list)
        left, right = self._pairs(self._rows, self._rows)
        for first, second in zip(left.tolist(), right.tolist(), strict=True):
            neighbours[first].append(second)
        duplicate = np.zeros(len(may_keep), np.bool_)
        kept: set[int] = set()
        for row in order:
            unit = int(self._rows.of_row[row])
            if unit in kept or not kept.isdisjoint(neighbours.get(unit, ())):
                duplicate[row] = True
            elif may_keep[row]:
                kept.add(unit)
        return duplicate

    def _pairs(self, left: _Units, right: _Units) -> tuple[Index, Index]:
        """All pairs of near units; a unit is near itself."""
        limit, width = self._limits.image_hamming, np.int64(max(1, len(right.text)))
        pair_keys = np.empty(0, np.int64)
        for mine, theirs in zip(left.keys(), right.keys(), strict=True):
            parts = [pair_keys]
            for a, b in phash_index.join(mine, theirs):
                near = phash_index.close(left.codes.take(a), right.codes.take(b), limit)
                parts.append(a[near] * width + b[near])
            pair_keys = np.unique(np.concatenate(parts))
        a, b = pair_keys // width, pair_keys % width
        similar = self._similar(left.text[a], right.text[b])
        return a[similar], b[similar]

    def _similar(self, left: Index, right: Index) -> NDArray[np.bool_]:
        """Whether the texts are similar enough; each pair of texts is compared once."""
        count = max(1, len(self._texts))
        distinct, place = np.unique(np.minimum(left, right) * count + np.maximum(left, right), return_inverse=True)
        similar = np.array([self._alike(*divmod(int(pair), count)) for pair in distinct], np.bool_)
        return similar[place] if len(distinct) else np.empty(0, np.bool_)

    def _alike(self, left: int, right: int) -> bool:
        if left == right:
            return True
        return text_fingerprint.jaccard(self._of(left), self._of(right)) >= self._limits.text_jaccard

    def _of(self, number: int) -> frozenset[str]:
        if number not in self._shingles:
            self._shingles[number] = text_fingerprint.shingles(self._texts[number])
        return self._shingles[number]


def _units(codes: ImageCodes, text: Index, text_bands: list[Keys], limit: int) -> _Units:
    key = text_fingerprint.mixed([codes.bits, codes.hashed.astype(np.uint64), text.astype(np.uint64)])
    _, first, of_row = np.unique(key, return_index=True, return_inverse=True)
    mine, number = codes.take(first), text[first]
    return _Units(of_row, mine, number, phash_index.bands(mine, limit), [band[number] for band in text_bands])
