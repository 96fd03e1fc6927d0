"""What the models were trained on or answered on the way: R, the policy, students."""

from __future__ import annotations

from dataclasses import dataclass

from . import Split, TableRow
from .candidates import CandidateOutcome
from .prepared import Grade


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
