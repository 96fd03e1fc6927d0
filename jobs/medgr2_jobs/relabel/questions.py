"""Which of an iteration's questions are worth asking again, and what an expert has said of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..curate.selection import ABOUT_THE_ANSWER
from ..store.rows.candidates import Candidate, Decision, Triplet, triplet_of


@dataclass(frozen=True)
class OpenQuestion:
    """A candidate's question that is put to the witnesses."""

    triplet: Triplet
    kept: bool
    """Curation keeps the candidate; false: it is rejected by its score alone, or for its answer by an expert."""
    review: int | None = None
    """Index of the answer that is right by an expert."""


def questions(
    candidates: Iterable[Candidate],
    decisions: Mapping[str, Decision],
    reviewed: Mapping[str, int],
    most: int,
    seed: int,
) -> list[OpenQuestion]:
    """The questions to ask, in the order of the candidates.

    What is kept, and what is rejected by its score or for its answer alone: of what is contaminated, twice there,
    guessable, too many or vetoed nothing may be learnt, whatever its answer is.

    Args:
        candidates: of the iteration.
        decisions: curation's, by triplet id.
        reviewed: index of the right answer by an expert, by triplet id: the generator's, confirmed, or another one.
        most: how many at most. An expert's come first, for they say how reliable the witnesses are; then the rejected
            ones, where R and the generator disagree; each drawn by lot.
        seed: of the lot.
    """
    asked = []
    for row in candidates:
        decision, triplet = decisions.get(row.triplet_id), triplet_of(row)
        if decision is None or triplet is None:
            continue
        if decision.keep or (decision.reasons and ABOUT_THE_ANSWER.issuperset(decision.reasons)):
            asked.append(OpenQuestion(triplet, decision.keep, reviewed.get(row.triplet_id)))
    if len(asked) <= most:
        return asked
    first = sorted(asked, key=lambda row: (row.review is None, row.kept, _lot(seed, row.triplet.triplet_id)))[:most]
    chosen = {row.triplet.triplet_id for row in first}
    return [row for row in asked if row.triplet.triplet_id in chosen]


def batches(rows: Sequence[OpenQuestion], size: int) -> list[list[OpenQuestion]]:
    """Consecutive questions, whole images, at least `size` in each batch but the last."""
    found: list[list[OpenQuestion]] = []
    groups: dict[str, list[OpenQuestion]] = {}
    for row in rows:
        groups.setdefault(row.triplet.image_sha256, []).append(row)
    for group in groups.values():
        if not found or len(found[-1]) >= size:
            found.append([])
        found[-1] += group
    return found


def _lot(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"cross-examination/{seed}/{name}".encode()).digest()
