"""What is known of a candidate: what the generator said, its score, curation's decision, what its witnesses settle."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ...errors import CorruptArtifact
from . import TableRow


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


@dataclass(frozen=True, slots=True)
class Score(TableRow):
    """r(x) of a candidate, in [-6, 10]."""

    TABLE = "scores"
    VERSION = 1

    triplet_id: str
    score: float


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
    """What is right by an expert, who confirms the generator or names another option; null: nobody has looked."""
    agreed: bool
    """At least two of R, policy and generator pick the settled answer, or an expert does."""
