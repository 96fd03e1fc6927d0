"""The text of a triplet as it is compared: question, options and answer, whatever case, spacing and order."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from datasketch import MinHash
from numpy.typing import NDArray

from ..prompts.answers import normalise
from ..store.rows import AnsweredQuestion

PERMUTATIONS = 128
_SEED = 1
#: Pairs at the limit that the index may miss.
_MISSED = 1e-3


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


def rows_per_band(limit: float) -> int:
    """How many hashes make a band, so that of pairs as similar as `limit` at most one in a thousand shares none.

    Two texts of similarity J agree in a band of r hashes with probability J^r. 0: no number of hashes is enough.
    """
    most = 0
    for rows in range(1, PERMUTATIONS + 1):
        if (1 - limit**rows) ** (PERMUTATIONS // rows) <= _MISSED:
            most = rows
    return most


def bands(texts: list[NormalisedText], limit: float) -> list[NDArray[np.uint64]]:
    """Keys (N,) of which two texts that are similar enough share at least one (MinHash, banded).

    Not datasketch's MinHashLSH: it answers one text at a time, and here a band of the text counts only together with
    one of the image (`near`).
    """
    rows = rows_per_band(limit)
    if rows == 0:
        return [np.zeros(len(texts), np.uint64)]
    signatures = np.empty((PERMUTATIONS, len(texts)), np.uint32)
    pieces = ([piece.encode() for piece in shingles(text)] for text in texts)
    hashes = MinHash.generator(pieces, num_perm=PERMUTATIONS, seed=_SEED, scheme="affine32")
    for place, signature in enumerate(hashes):
        signatures[:, place] = signature.hashvalues
    starts = range(0, PERMUTATIONS - rows + 1, rows)
    return [mixed(list(signatures[start : start + rows].astype(np.uint64))) for start in starts]


def mixed(columns: list[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """One key (N,) of several columns (N,); equal where all of them are, and hardly anywhere else."""
    key = np.zeros(len(columns[0]), np.uint64)
    for column in columns:  # the finaliser of MurmurHash3 after each
        key = (key ^ column) * np.uint64(0xFF51AFD7ED558CCD)
        key ^= key >> np.uint64(33)
        key *= np.uint64(0xC4CEB9FE1A85EC53)
        key ^= key >> np.uint64(29)
    return key
