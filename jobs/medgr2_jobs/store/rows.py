"""What flows between the stages: one frozen dataclass per table; its parquet schema is made from it (`tables.py`).

A value is written once. What belongs to a candidate is keyed by its `triplet_id`: `Score`, `Decision`. The training set
and the lineage are joins of these, made when they are read. A field is a column of the same name, in this order;
`| None` is a column that may be null.

A table whose columns change gets a new VERSION; readers refuse one that they do not know.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Protocol

from ..errors import CorruptArtifact


class Split(StrEnum):
    """What a row may be used for."""

    TRAIN = "train"
    VALIDATION = "validation"
    """Every choice reads this split (thresholds, promotion, early stopping)."""
    TEST = "test"
    """A benchmark's: reported, never used to choose."""
    HELDOUT = "heldout"
    """Of graded rows and preferences: what R is judged on, never trained on; made from validation items."""


class CandidateOutcome(StrEnum):
    """What became of a question to the generator; `generate/candidate_schema.py` says what each one means."""

    OK = "ok"
    INVALID_JSON = "invalid_json"
    SCHEMA = "schema"
    WRONG_OPTION_COUNT = "wrong_option_count"
    DUPLICATE_OPTIONS = "duplicate_options"
    ANSWER_NOT_IN_OPTIONS = "answer_not_in_options"
    ANSWER_CONTRADICTS = "answer_contradicts"
    EMPTY = "empty"
    REFUSED = "refused"
    TRUNCATED = "truncated"
    REJECTED = "rejected"
    UNREADABLE = "unreadable"
    HTTP_ERROR = "http_error"


#: In the reason why a record was set aside: a path before it, what is quoted, and numbers.
_OWN = re.compile(r"^\S*/.*?(?=: )|\b(?:file|group)-[0-9a-f]{16}|'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


class SetAside(StrEnum):
    """Why a record was set aside."""

    UNUSABLE = "unusable"
    """Something is wrong with it: what `data.maxBadFraction` counts."""
    NO_PICTURE = "no picture"
    """Nothing is wrong with it, but it shows nobody: reports, segmentations, presentation states."""
    WITHHELD = "withheld"
    """It has, or seems to have, text in its pixels that may name the patient."""


class Grade(StrEnum):
    """How good a response is: the paper's four grades, and the right text beside a wrong image."""

    ORIGINAL = "original"
    PERTURBED = "perturbed"
    INCOHERENT = "incoherent"
    IRRELEVANT = "irrelevant"
    IMAGE_MISMATCH = "imageMismatch"


class EvalCondition(StrEnum):
    """What a checkpoint is shown when it is measured: the real image, or a control that takes information away."""

    REAL = "real"
    BLANK = "blank"
    """Mid grey of the same size: neither content nor tint is left."""
    SHUFFLED = "shuffled"
    """Another image of the same set and, where there is one, of the same modality."""
    OPTIONS_ONLY = "options_only"
    """The options alone: no image and no question."""
    OPTION_PRIOR = "option_prior"
    """No model: how often each option text is right in the training split."""
    CHANCE = "chance"
    """Nothing at all: one over the number of options."""


class Scoring(StrEnum):
    """How an answer is read from a model."""

    GREEDY = "greedy"
    """What it writes at temperature 0."""
    OPTION_LOGPROB = "option_logprob"
    """The offered option that it finds likeliest."""


class Question(Protocol):
    """What every question carries, from the seed to the predictions."""

    @property
    def image_sha256(self) -> str: ...

    @property
    def modality(self) -> str: ...

    @property
    def question_type(self) -> str: ...

    @property
    def question(self) -> str: ...

    @property
    def options(self) -> tuple[str, ...]: ...


class AnsweredQuestion(Question, Protocol):
    """A question of which an answer is known, or believed."""

    @property
    def answer_index(self) -> int: ...


class StoredRow:
    """Base of all that is read from tables."""

    __slots__ = ()

    TABLE: ClassVar[str]
    """Name of the table: the file is `<TABLE>.parquet`."""
    VERSION: ClassVar[int]


class TableRow(StoredRow):
    """Base of all rows: a field per column of the table."""

    __slots__ = ()


class TableView(StoredRow):
    """Base of rows with some columns of a table, in its order. Only these are read; a view is never written."""

    __slots__ = ()


# prepare


@dataclass(frozen=True, slots=True)
class Image(TableRow):
    """A picture of the image store."""

    TABLE = "images"
    VERSION = 2

    image_sha256: str
    width: int
    height: int
    modality: str
    source: str
    source_path: str
    split: Split
    allow_external: bool
    """Whether it may be sent to an external provider."""
    dataset: str
    patient: str
    phash: str
    """Perceptual hash, 16 hex digits; empty where it says nothing."""


@dataclass(frozen=True, slots=True)
class ImageOrigin(TableRow):
    """That a source or benchmark has an image; also one of which its record could not be used."""

    TABLE = "image_origins"
    VERSION = 1

    image_sha256: str
    source: str
    """Name of the source or benchmark."""


@dataclass(frozen=True, slots=True)
class Item(TableRow):
    """A question with its gold answer."""

    TABLE = "items"
    VERSION = 1

    item_id: str
    source: str
    split: Split
    benchmark: str
    """Name of the test set; empty outside split test."""
    image_sha256: str
    modality: str
    question_type: str
    question: str
    options: tuple[str, ...]
    answer_index: int
    rationale: str


@dataclass(frozen=True, slots=True)
class GradedRow(TableRow):
    """A row of D_grade: a seed item's text, as it is or made worse in a known way."""

    TABLE = "grades"
    VERSION = 2

    sample_id: str
    item_id: str
    source: str
    split: Split
    image_sha256: str
    modality: str
    question_type: str
    question: str
    options: tuple[str, ...]
    response: str
    grade: Grade
    target: float
    """Score that R shall give, in [-6, 10]."""
    perturbation: str
    seed: int


@dataclass(frozen=True, slots=True)
class PhantomRow(TableRow):
    """What a synthetic image shows."""

    TABLE = "phantoms"
    VERSION = 1

    image_sha256: str
    modality: str
    finding: str
    location: str
    count: str


@dataclass(frozen=True, slots=True)
class QuarantinedRecord(TableRow):
    """A record of a source that could not be used, and why."""

    TABLE = "quarantine"
    VERSION = 2

    source: str
    record: str
    field: str
    reason: str
    kind: SetAside

    @property
    def sort(self) -> str:
        """Field and reason without what is this record's alone: names, quoted values, numbers."""
        field = _NUMBER.sub("N", self.field)
        return f"{field}: {_NUMBER.sub('N', _OWN.sub('…', self.reason))}"


# generate


@dataclass(frozen=True, slots=True)
class Candidate(TableRow):
    """One question to the generator and what came of it.

    Question, options, answer, rationale and response say something only where the outcome is ok: see `triplet_of`.
    """

    TABLE = "candidates"
    VERSION = 2

    triplet_id: str
    iteration: int
    image_sha256: str
    modality: str
    question_type: str
    question: str | None
    options: tuple[str, ...] | None
    answer_index: int | None
    rationale: str | None
    response: str | None
    paradigm: str
    template_sha256: str
    generator: str
    """The provider's model id; of a generator that the loop taught `distill@t:<digest>` (`is_student`)."""
    outcome: CandidateOutcome
    error: str
    attempts: int | None
    input_tokens: int | None
    output_tokens: int | None
    thinking_tokens: int | None
    usd: float | None
    """What it cost in US dollars; null where nothing has a price."""


@dataclass(frozen=True, slots=True)
class Triplet:
    """What a candidate says that can be used: an image, a question about it, and the answer that is believed."""

    triplet_id: str
    iteration: int
    image_sha256: str
    modality: str
    question_type: str
    question: str
    options: tuple[str, ...]
    answer_index: int
    rationale: str
    response: str
    generator: str = ""
    """As `Candidate.generator`."""


_STUDENT = "distill@"


def student_name(iteration: int, digest: str) -> str:
    """`Candidate.generator` of what a student wrote: the generator that stage distill of this iteration has taught.

    Args:
        iteration: of stage distill.
        digest: of its artifact.
    """
    return f"{_STUDENT}{iteration}:{digest[:12]}"


def is_student(generator: str) -> bool:
    """Whether this `Candidate.generator` is one that the loop has taught: its errors are those of its teachers."""
    return generator.startswith(_STUDENT)


def triplet_of(candidate: Candidate) -> Triplet | None:
    """The candidate's triplet; None where nothing usable came of it.

    Raises:
        CorruptArtifact: its outcome is ok, and yet a part of the triplet is missing.
    """
    if candidate.outcome is not CandidateOutcome.OK:
        return None
    question, options, answer_index = candidate.question, candidate.options, candidate.answer_index
    rationale, response = candidate.rationale, candidate.response
    if question is None or options is None or answer_index is None or rationale is None or response is None:
        names = ("question", "options", "answer_index", "rationale", "response")
        missing = ", ".join(name for name in names if getattr(candidate, name) is None)
        raise CorruptArtifact(
            f"table candidates, triplet {candidate.triplet_id!r}: its outcome is ok, but it has no {missing}; "
            f"run stage generate of iteration {candidate.iteration} again (`--restart-from`)"
        )
    return Triplet(
        candidate.triplet_id, candidate.iteration, candidate.image_sha256, candidate.modality, candidate.question_type,
        question, options, answer_index, rationale, response, candidate.generator,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Truth(TableRow):
    """The scripted generator's own knowledge of a candidate: only the report reads it."""

    TABLE = "truth"
    VERSION = 1

    triplet_id: str
    kind: str
    correct: bool


# reward, score


@dataclass(frozen=True, slots=True)
class CalibrationRow(TableRow):
    """A held-out graded row and what R says of it."""

    TABLE = "calibration"
    VERSION = 1

    sample_id: str
    grade: Grade
    target: float
    score: float


@dataclass(frozen=True, slots=True)
class RewardAnswer(TableRow):
    """How R answers a validation question: its score of the same text with each option in turn."""

    TABLE = "answers"
    VERSION = 1

    item_id: str
    image_sha256: str
    answer_index: int
    """The right one."""
    option_scores: tuple[float, ...]
    """In [-6, 10], in the order of the question's options; the highest is R's answer."""


@dataclass(frozen=True, slots=True)
class Score(TableRow):
    """r(x) of a candidate, in [-6, 10]."""

    TABLE = "scores"
    VERSION = 1

    triplet_id: str
    score: float


# curate


@dataclass(frozen=True, slots=True)
class Decision(TableRow):
    """Whether a candidate goes into D_gen, with every reason against it."""

    TABLE = "decisions"
    VERSION = 2

    triplet_id: str
    keep: bool
    reasons: tuple[str, ...]
    option_order: tuple[int, ...] | None
    """D_gen's option i is the candidate's option option_order[i]; null: as the generator gave them."""


# relabel


@dataclass(frozen=True, slots=True)
class AnswerPosterior(TableRow):
    """What R, the policy and the generator make of one candidate's question; options in the candidate's own order."""

    TABLE = "posteriors"
    VERSION = 1

    triplet_id: str
    posterior: tuple[float, ...]
    """How likely each option is right; they add up to 1."""
    answer_index: int | None
    """The settled answer; null: no option is likely enough."""
    rationale: str
    """The policy's for the settled answer, or the generator's; empty where nothing is settled."""
    claim: int
    """What the generator says."""
    reward_scores: tuple[float, ...]
    """R's score of the same text with each option in turn, in [-6, 10]."""
    policy_shares: tuple[float, ...]
    """Share of the policy's readable answers that pick each option; zeros: none could be read."""
    review: int | None
    """What an expert says; null: nobody has looked at it."""
    agreed: bool
    """At least two of R, policy and generator pick the settled answer, or an expert does."""


# grpo, preferences


@dataclass(frozen=True, slots=True)
class Rollout(TableRow):
    """One sampled completion of GRPO, with its reward and the terms of it."""

    TABLE = "rollouts"
    VERSION = 1

    step: int
    prompt_id: str
    completion: str
    reward: float
    reward_model: float | None
    match: float | None
    parsed: bool


@dataclass(frozen=True, slots=True)
class Preference(TableRow):
    """One of the policy's own answers, graded by rule (D_pref)."""

    TABLE = "preferences"
    VERSION = 1

    sample_id: str
    prompt_id: str
    split: Split
    image_sha256: str
    modality: str
    question_type: str
    question: str
    options: tuple[str, ...]
    response: str
    grade: Grade
    target: float
    gold: bool
    """The answer is the seed's; false: it is the filter's opinion."""


# distill


@dataclass(frozen=True, slots=True)
class TaughtRow(TableRow):
    """A row of D_gen that a student has learnt."""

    TABLE = "rows"
    VERSION = 1

    row_id: str
    """The item's or the triplet's id."""
    origin: str
    """As `Origin`."""
    iteration: int
    """Which iteration generated it; 0: the seed."""
    image_sha256: str
    generator: str
    """As `Candidate.generator`; empty: the seed."""
    depth: int
    """How many students stand behind it."""


@dataclass(frozen=True, slots=True)
class ProbeRow(TableRow):
    """What a student and the first generator made of a task of the probe. Question and what follows it, up to
    `agreed`, are the student's, and say something only where the outcome is ok."""

    TABLE = "probe"
    VERSION = 1

    triplet_id: str
    image_sha256: str
    modality: str
    question_type: str
    outcome: CandidateOutcome
    attempts: int
    question: str
    options: tuple[str, ...]
    answer_index: int | None
    rationale: str
    response: str
    score: float | None
    """R's."""
    agreed: bool | None
    """Whether the policy answers the question as it does; null: it was not asked."""
    first_outcome: CandidateOutcome
    """The first generator's, as are the columns that follow; its triplet is its candidate."""
    first_score: float | None
    first_agreed: bool | None


# evaluate


@dataclass(frozen=True, slots=True)
class Prediction(TableRow):
    """A checkpoint's answer to one question under one condition."""

    TABLE = "predictions"
    VERSION = 1

    checkpoint: str
    """base, sft or grpo."""
    split: Split
    benchmark: str
    item_id: str
    image_sha256: str
    modality: str
    question_type: str
    condition: EvalCondition
    scoring: Scoring
    answer_index: int
    predicted: int | None
    """Option that it chose; null: none could be read."""
    correct: bool
    option_logprobs: tuple[float, ...]
    text: str
