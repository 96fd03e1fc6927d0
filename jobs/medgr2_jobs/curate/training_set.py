"""D_gen, made when it is read: the seed, and what each iteration kept of its candidates.

A join of prepare's items with every iteration's candidates and decisions (roles `prepare`, `generate-t`, `curate-t`):
nothing is copied from one iteration to the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from medgr2_api.training_spec import AnswerFormat

from ..data import graded_dataset
from ..errors import CorruptArtifact
from ..prompts import answers
from ..store.artifact import ArtifactInputs
from ..store.rows import Candidate, Decision, Item, Split, Triplet, is_student, triplet_of


class Origin(StrEnum):
    """Where a row of D_gen comes from, so how far its answer is to be trusted."""

    SEED = "seed"
    """The users' data: its answer is right."""
    GENERATED = "generated"
    """A candidate that curation kept: its answer is believed."""


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """A question of D_gen with the answer that is taught."""

    row_id: str
    """The item's or the triplet's id."""
    origin: Origin
    iteration: int
    """Which iteration generated it; 0: the seed."""
    image_sha256: str
    modality: str
    question_type: str
    question: str
    options: tuple[str, ...]
    answer_index: int
    response: str
    """Rationale and answer, as the policy shall write them."""
    generator: str = ""
    """Who wrote it, as `Candidate.generator`; empty: the seed."""

    @property
    def trusted(self) -> bool:
        """Whether its answer is believed on its own: a student's is what its teachers would have said, so that it needs
        a second source."""
        return not is_student(self.generator)


def training_set(inputs: ArtifactInputs, iteration: int, answer_format: AnswerFormat) -> list[TrainingRow]:
    """D_gen as it stands after an iteration: the seed in the order of its items, then each iteration's kept triplets
    in the order of its candidates.

    Args:
        inputs: `prepare`; `curate-t` and, where anything was generated, `generate-t` of iterations 1 to `iteration`.
        iteration: the newest; 0: the seed alone.
        answer_format: how responses are written.

    Raises:
        ConfigError: an input is missing.
        CorruptArtifact: a table is damaged, or a kept triplet is not among the candidates.
    """
    items = inputs.input("prepare").rows(Item)
    rows = [_seed_row(item, answer_format) for item in items if item.split is Split.TRAIN]
    for t in range(1, iteration + 1):
        rows += [dealt_row(triplet, order, answer_format) for triplet, order in _kept(inputs, t)]
    return rows


def dealt_row(triplet: Triplet, option_order: tuple[int, ...] | None, answer_format: AnswerFormat) -> TrainingRow:
    """The row of a kept triplet, its options in the order that curation dealt (`Decision.option_order`)."""
    options, right, response = triplet.options, triplet.answer_index, triplet.response
    if option_order is not None:
        options = tuple(options[place] for place in option_order)
        right = option_order.index(right)
        response = answers.response(triplet.rationale, right, options, answer_format)
    return TrainingRow(
        row_id=triplet.triplet_id,
        origin=Origin.GENERATED,
        iteration=triplet.iteration,
        image_sha256=triplet.image_sha256,
        modality=triplet.modality,
        question_type=triplet.question_type,
        question=triplet.question,
        options=options,
        answer_index=right,
        response=response,
        generator=triplet.generator,
    )


def _seed_row(item: Item, answer_format: AnswerFormat) -> TrainingRow:
    rationale = graded_dataset.rationale_for(item)
    return TrainingRow(
        row_id=item.item_id,
        origin=Origin.SEED,
        iteration=0,
        image_sha256=item.image_sha256,
        modality=item.modality,
        question_type=item.question_type,
        question=item.question,
        options=item.options,
        answer_index=item.answer_index,
        response=answers.response(rationale, item.answer_index, item.options, answer_format),
    )


def _kept(inputs: ArtifactInputs, iteration: int) -> Iterator[tuple[Triplet, tuple[int, ...] | None]]:
    """What an iteration kept, with the order of its options."""
    curate = inputs.input(f"curate-{iteration}")
    orders = {row.triplet_id: row.option_order for row in curate.rows(Decision) if row.keep}
    if not orders:  # also where generate is disabled: then there are no candidates to read
        return
    triplets = [
        triplet
        for candidates in inputs.input(f"generate-{iteration}").batches(Candidate, where=("triplet_id", orders))
        for row in candidates
        if (triplet := triplet_of(row))
    ]
    if len(triplets) < len(orders):
        missing = orders.keys() - {triplet.triplet_id for triplet in triplets}
        raise CorruptArtifact(
            f"{curate.folder}: table decisions keeps {min(missing)!r}, which is no usable candidate of "
            f"generate@{iteration}; run stage curate of iteration {iteration} again (`--restart-from`)"
        )
    yield from ((triplet, orders[triplet.triplet_id]) for triplet in triplets)
