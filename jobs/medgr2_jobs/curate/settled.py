"""The questions that stage relabel has settled, of all iterations: what the next R and a student learn from.

A join of every iteration's candidates and posteriors (roles `generate-t`, `relabel-t`): nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import CorruptArtifact
from ..store.artifact import ArtifactInputs
from ..store.rows.candidates import AnswerPosterior, Candidate, Triplet, triplet_of


@dataclass(frozen=True, slots=True)
class SettledQuestion:
    """A candidate's question with the answer that the cross-examination makes likely."""

    triplet: Triplet
    """The candidate as the generator gave it: `triplet.answer_index` is its claim, not what is settled."""
    answer_index: int
    """The settled answer, in the candidate's own order of the options."""
    rationale: str
    """For the settled answer."""
    posterior: float
    """How likely the settled answer is right."""
    agreed: bool
    """At least two of R, policy and generator pick it, or an expert does."""

    @property
    def against_claim(self) -> bool:
        """The settled answer is not what the generator says."""
        return self.answer_index != self.triplet.answer_index


def settled_questions(inputs: ArtifactInputs, iteration: int) -> list[SettledQuestion]:
    """Those of iterations 1 to `iteration`, in the candidates' order.

    Args:
        inputs: with roles `generate-t` and `relabel-t`; an iteration without relabel has none.
        iteration: the newest.

    Raises:
        CorruptArtifact: a table is damaged, or a settled question is not among the candidates.
    """
    return [row for t in range(1, iteration + 1) for row in _of(inputs, t) if row is not None]


def asked_questions(inputs: ArtifactInputs, iteration: int) -> dict[str, AnswerPosterior]:
    """What was asked in an iteration, by triplet id, settled or not; empty without relabel."""
    role = f"relabel-{iteration}"
    if not inputs.has_input(role):
        return {}
    return {row.triplet_id: row for row in inputs.input(role).rows(AnswerPosterior)}


def settled(triplet: Triplet, row: AnswerPosterior) -> SettledQuestion | None:
    """A triplet with what was found; None: its question is not settled."""
    if row.answer_index is None:
        return None
    return SettledQuestion(triplet, row.answer_index, row.rationale, row.posterior[row.answer_index], row.agreed)


def _of(inputs: ArtifactInputs, iteration: int) -> Iterator[SettledQuestion | None]:
    found = {name: row for name, row in asked_questions(inputs, iteration).items() if row.answer_index is not None}
    if not found:
        return
    missing = set(found)
    candidates = inputs.input(f"generate-{iteration}")
    for batch in candidates.batches(Candidate, where=("triplet_id", found)):
        for candidate in batch:
            if triplet := triplet_of(candidate):
                missing.discard(triplet.triplet_id)
                yield settled(triplet, found[triplet.triplet_id])
    if missing:
        raise CorruptArtifact(
            f"{inputs.input(f'relabel-{iteration}').folder}: table posteriors settles {min(missing)!r}, which is no "
            f"usable candidate of generate@{iteration}; run stage relabel of iteration {iteration} again "
            "(`--restart-from`)"
        )
