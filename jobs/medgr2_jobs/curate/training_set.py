"""D_gen, made when it is read: the seed, and what each iteration kept of its candidates, corrected since.

A join of prepare's items with every iteration's candidates, decisions and posteriors (roles `prepare`, `generate-t`,
`curate-t`, `relabel-t`): nothing is copied from one iteration to the next. Where an iteration has posteriors, the
settled answers count in the place of the generator's: what was kept is corrected, or goes where nothing is settled any
more, and what was rejected by its score alone comes in, as far as `curation.balance` lets it. What was not asked stays
as curation left it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from medgr2_api.stages.curate import CurateParameters
from medgr2_api.training_spec import AnswerFormat

from ..data import graded_dataset
from ..errors import CorruptArtifact
from ..prompts import answers
from ..store.artifact import ArtifactInputs
from ..store.rows import Split, TableView
from ..store.rows.candidates import AnswerPosterior, Candidate, Decision, Triplet, is_student, triplet_of
from ..store.rows.prepared import Item
from . import balance
from .option_shuffle import option_order
from .selection import BY_SCORE, WRONG_ANSWER
from .settled import asked_questions


class Origin(StrEnum):
    """Where a row of D_gen comes from, so how far its answer is to be trusted."""

    SEED = "seed"
    """The users' data: its answer is right."""
    GENERATED = "generated"
    """A candidate that curation kept: its answer is believed."""
    CORRECTED = "corrected"
    """One that curation kept, or would have but for an expert who named another answer, with the answer that was
    settled since."""
    RESCUED = "rescued"
    """One that was rejected by its score alone, with the answer that was settled since."""


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
    posterior: float | None = None
    """How likely the answer is right by the cross-examination; None: it was not asked."""
    agreed: bool | None = None
    """Whether two of R, policy and generator say it, or an expert; None: it was not asked."""

    @property
    def trusted(self) -> bool:
        """Whether its answer may be a target by itself: what was asked again needs a second source, and so does a
        student's, which is what its teachers would have said."""
        return self.agreed if self.agreed is not None else not is_student(self.generator)


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
        rows += _generated(inputs, t, answer_format)
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


def becomes(decision: Decision, found: AnswerPosterior | None) -> Origin | None:
    """What a candidate is in the D_gen of later iterations, if `capped` has room for it; None: it is not in it.

    Args:
        decision: curation's.
        found: what relabel has found out about it; None: it was not asked, or D_gen is not corrected.
    """
    if found is None:
        return Origin.GENERATED if decision.keep else None
    if found.answer_index is None:
        return None
    against = set(decision.reasons) - {WRONG_ANSWER}
    if decision.keep or (decision.reasons and not against):
        return Origin.GENERATED if found.answer_index == found.claim else Origin.CORRECTED
    return Origin.RESCUED if against and BY_SCORE.issuperset(against) else None


@dataclass(frozen=True, slots=True)
class GroupColumns(TableView):
    """What candidates are balanced by."""

    TABLE = Candidate.TABLE
    VERSION = Candidate.VERSION

    triplet_id: str
    modality: str
    question_type: str


def capped(inputs: ArtifactInputs, iteration: int) -> frozenset[str]:
    """Triplet ids that `curation.balance` keeps out of what relabel has made of an iteration; empty where there is no
    relabel or no balance.

    The shares are those of the iteration's part of D_gen, as in curation. Of a group that is too large what was kept
    stays before what is rescued, and of each of the two what is most likely right; ties by id.

    Args:
        inputs: as of `training_set`.
        iteration: which one.
    """
    found = asked_questions(inputs, iteration)
    if not found:
        return frozenset()
    curate = inputs.input(f"curate-{iteration}")
    limits = curate.parameters(CurateParameters).curation.balance
    if limits is None:
        return frozenset()
    there: dict[str, tuple[bool, float, str]] = {}
    for row in curate.rows(Decision):
        name, known = row.triplet_id, found.get(row.triplet_id)
        if origin := becomes(row, known):
            likely = 1.0 if known is None else max(known.posterior)
            there[name] = origin is Origin.RESCUED, -likely, name
    groups: dict[str, tuple[str, ...]] = {}
    for batch in inputs.input(f"generate-{iteration}").batches(GroupColumns, where=("triplet_id", there)):
        groups |= {candidate.triplet_id: balance.group_of(candidate, limits) for candidate in batch}
    names = sorted(groups, key=there.__getitem__)
    return frozenset(balance.take(names, None, groups.__getitem__, limits.max_share).capped)


def _generated(inputs: ArtifactInputs, iteration: int, answer_format: AnswerFormat) -> Iterator[TrainingRow]:
    """An iteration's share, in the order of its candidates."""
    curate = inputs.input(f"curate-{iteration}")
    found = asked_questions(inputs, iteration)
    left_out = capped(inputs, iteration)
    wanted: dict[str, tuple[Decision, Origin]] = {}
    for row in curate.rows(Decision):
        if row.triplet_id not in left_out and (origin := becomes(row, found.get(row.triplet_id))):
            wanted[row.triplet_id] = row, origin
    if not wanted:  # also where generate is disabled: then there are no candidates to read
        return
    missing = set(wanted)
    parameters = curate.parameters(CurateParameters) if found else None
    for candidates in inputs.input(f"generate-{iteration}").batches(Candidate, where=("triplet_id", wanted)):
        for candidate in candidates:
            if (triplet := triplet_of(candidate)) is None:
                continue
            missing.discard(triplet.triplet_id)
            (decision, origin), known = wanted[triplet.triplet_id], found.get(triplet.triplet_id)
            order = decision.option_order
            if origin is not Origin.GENERATED and known is not None and parameters is not None:
                triplet = _with_answer(triplet, known, answer_format)
                deals = parameters.curation.reject_guessable
                order = option_order(triplet, answer_format, parameters.seed) if deals else None
            row_of = dealt_row(triplet, order, answer_format)
            yield row_of if known is None else _told(row_of, origin, known)
    if missing:
        raise CorruptArtifact(
            f"{curate.folder}: table decisions keeps {min(missing)!r}, which is no usable candidate of "
            f"generate@{iteration}; run stage curate of iteration {iteration} again (`--restart-from`)"
        )


def _with_answer(triplet: Triplet, found: AnswerPosterior, answer_format: AnswerFormat) -> Triplet:
    """The triplet with the settled answer and a rationale for it."""
    assert found.answer_index is not None
    response = answers.response(found.rationale, found.answer_index, triplet.options, answer_format)
    return replace(triplet, answer_index=found.answer_index, rationale=found.rationale, response=response)


def _told(row: TrainingRow, origin: Origin, found: AnswerPosterior) -> TrainingRow:
    assert found.answer_index is not None
    return replace(row, origin=origin, posterior=found.posterior[found.answer_index], agreed=found.agreed)
