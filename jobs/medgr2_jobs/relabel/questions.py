"""Which of an iteration's questions are worth asking again, and what an expert has said of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from ..curate.selection import BY_SCORE
from ..store.rows.candidates import Candidate, Decision, Triplet, triplet_of


@dataclass(frozen=True)
class OpenQuestion:
    """A candidate's question that is put to the witnesses."""

    triplet: Triplet
    kept: bool
    """Curation keeps the candidate; false: it is rejected by its score alone."""
    review: int | None = None
    """Index of the answer that an expert confirms."""


def questions(
    candidates: Iterable[Candidate],
    decisions: Mapping[str, Decision],
    confirmed: AbstractSet[str],
    most: int,
    seed: int,
) -> list[OpenQuestion]:
    """The questions to ask, in the order of the candidates.

    What is kept, and what is rejected by its score alone: of what is contaminated, twice there, guessable, too many or
    vetoed nothing may be learnt, whatever its answer is.

    Args:
        candidates: of the iteration.
        decisions: curation's, by triplet id.
        confirmed: triplet ids whose answer an expert has looked at and let stand.
        most: how many at most. An expert's come first, for they say how reliable the witnesses are; then the rejected
            ones, where R and the generator disagree; each drawn by lot.
        seed: of the lot.
    """
    asked = []
    for row in candidates:
        decision, triplet = decisions.get(row.triplet_id), triplet_of(row)
        if decision is None or triplet is None:
            continue
        if decision.keep or (decision.reasons and BY_SCORE.issuperset(decision.reasons)):
            review = triplet.answer_index if row.triplet_id in confirmed else None
            asked.append(OpenQuestion(triplet, decision.keep, review))
    if len(asked) <= most:
        return asked
    first = sorted(asked, key=lambda row: (row.review is None, row.kept, _lot(seed, row.triplet.triplet_id)))[:most]
    chosen = {row.triplet.triplet_id for row in first}
    return [row for row in asked if row.triplet.triplet_id in chosen]


def parts(rows: Sequence[OpenQuestion], size: int) -> list[list[OpenQuestion]]:
    """Consecutive questions, whole images, at least `size` in each part but the last."""
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
