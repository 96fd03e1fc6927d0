"""The probe: what student and first generator make of the same tasks, judged by R and the policy, and what the student
knows of the validation questions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from medgr2_api.training_spec import AnswerFormat

from ..engine.sampler import Sampler
from ..evaluate import scoring
from ..generate.candidate_schema import OPTION_COUNT
from ..generate.sampling_plan import Task
from ..models import vlm
from ..models.vlm import Encoder, PromptResponse
from ..prompts import answers
from ..reward.model import RewardModel
from ..reward.scorer import answer_row, score
from ..runner.context import StageContext
from ..store.rows import Split
from ..store.rows.candidates import Candidate, CandidateOutcome, Triplet, is_student, triplet_of
from ..store.rows.prepared import Item
from ..store.rows.training import ProbeRow
from . import gate, student_format
from .gate import Gold, ProbeAnswer
from .sampler import Student
from .student_format import Answer
from .task_split import in_probe

#: Tasks of the probe at most, and validation questions: more narrow the intervals by little.
MOST_TASKS = 2000
MOST_QUESTIONS = 1000


@dataclass(frozen=True)
class Probe:
    """The tasks on which a student is measured, with what the first generator made of each."""

    tasks: list[Task]
    first: dict[str, Candidate]
    """By task."""

    @property
    def images(self) -> dict[str, str]:
        """sha256 by task."""
        return {task.triplet_id: task.image_sha256 for task in self.tasks}

    @classmethod
    def of(cls, ctx: StageContext[Any]) -> Probe:
        """From all iterations so far: tasks about the probe's pictures that the first generator was asked."""
        first: dict[str, Candidate] = {}
        for t in range(1, ctx.request.iteration + 1):
            if not ctx.has_input(f"generate-{t}"):
                continue
            for rows in ctx.input(f"generate-{t}").batches(Candidate):
                first |= {
                    row.triplet_id: row for row in rows if in_probe(row.image_sha256) and not is_student(row.generator)
                }
        names = sorted(first, key=lambda name: hashlib.sha256(name.encode()).digest())[:MOST_TASKS]
        chosen = {name: first[name] for name in sorted(names)}
        tasks = [Task(name, row.image_sha256, row.modality, row.question_type) for name, row in chosen.items()]
        return cls(tasks, chosen)


@dataclass(frozen=True)
class AskedPolicy:
    """The policy, to be asked."""

    sampler: Sampler
    encoder: Encoder
    answer_format: AnswerFormat

    def answers(self, ctx: StageContext[Any], questions: Sequence[answers.Askable], phase: str) -> list[int | None]:
        """The option that it names for each question, greedily; None: none."""
        prompts = [answers.prompt_of(question, self.answer_format) for question in questions]
        rows = [PromptResponse(prompt.image_sha256, prompt.text) for prompt in prompts]
        texts = scoring.greedy(self.sampler, self.encoder, rows, self.answer_format, _between(ctx, phase, len(rows)))
        return [
            answers.extract(text, question.options, self.answer_format)
            for text, question in zip(texts, questions, strict=True)
        ]


def scores(ctx: StageContext[Any], triplets: Sequence[Triplet], answer_format: AnswerFormat) -> list[float]:
    """R's score of each triplet, by the reward model in force."""
    folder = ctx.input("reward").folder_of("model")
    encoder = Encoder(vlm.load_processor(folder), ctx.images)
    rows = [answer_row(triplet, answer_format) for triplet in triplets]

    def on_progress(done: int, total: int) -> None:
        ctx.progress("score", done, total)
        ctx.check_stop()

    return score(RewardModel.load(folder), encoder, rows, on_progress=on_progress).tolist() if rows else []


def threshold(ctx: StageContext[Any]) -> float:
    """Score from which on R accepts: that of this iteration's curation, else of a good text (`RewardInfo.good`)."""
    curated = ctx.input(f"curate-{ctx.request.iteration}").manifest.counters
    if "threshold" in curated:
        return curated["threshold"]
    return RewardModel.load(ctx.input("reward").folder_of("model")).info.good


def judged(
    ctx: StageContext[Any],
    by_student: Mapping[str, Triplet | None],
    by_first: Mapping[str, Triplet | None],
    policy: AskedPolicy,
) -> tuple[dict[str, ProbeAnswer], dict[str, ProbeAnswer]]:
    """R's and the policy's word on what both generators wrote.

    Args:
        ctx: the stage's.
        by_student: triplets by task.
        by_first: the first generator's, of the same tasks.
        policy: it is asked where both made a triplet.
    """
    both = [name for name in by_student if by_student[name] and by_first[name]]
    found: list[dict[str, ProbeAnswer]] = []
    for who, made in (("student", by_student), ("first generator", by_first)):
        there = {name: triplet for name, triplet in made.items() if triplet is not None}
        value = dict(zip(there, scores(ctx, [*there.values()], policy.answer_format), strict=True))
        said = policy.answers(ctx, [there[name] for name in both], f"policy answers the {who}")
        agreed = {name: picked == there[name].answer_index for name, picked in zip(both, said, strict=True)}
        found.append(
            {name: ProbeAnswer(triplet, _finite(value.get(name)), agreed.get(name)) for name, triplet in made.items()}
        )
    return found[0], found[1]


def gold(ctx: StageContext[Any], student: Student, policy: AskedPolicy) -> Gold | None:
    """Both models on validation questions: each is put into the student's mouth, which then goes on."""
    items = [
        item
        for item in ctx.input("prepare").rows(Item)
        if item.split is Split.VALIDATION and len(item.options) == OPTION_COUNT
    ]
    items.sort(key=lambda item: hashlib.sha256(item.item_id.encode()).digest())
    chosen = items[:MOST_QUESTIONS]
    rows = [
        PromptResponse(
            item.image_sha256,
            student_format.prompt(item.question_type, item.modality, policy.answer_format),
            student_format.asked(item),
        )
        for item in chosen
    ]
    texts: list[str] = []
    between = _between(ctx, "student answers validation questions", len(rows))
    for part in vlm.chunks(rows, 128):
        texts += vlm.generate(student.model, student.encoder, part, max_new_tokens=student.longest)
        between(len(texts))
    by_student = [
        answers.extract(text, item.options, AnswerFormat.OPTION_TEXT) == item.answer_index
        for text, item in zip(texts, chosen, strict=True)
    ]
    by_policy = policy.answers(ctx, chosen, "policy answers validation questions")
    return gate.gold(
        [item.question_type for item in chosen],
        by_student,
        [picked == item.answer_index for picked, item in zip(by_policy, chosen, strict=True)],
    )


def in_force(
    ctx: StageContext[Any],
    before: Sequence[ProbeRow],
    student: Mapping[str, ProbeAnswer],
    answer_format: AnswerFormat,
    accepts_above: float,
) -> tuple[float, float] | None:
    """Shares of accepted tasks of the student and of the one before it, on the tasks that both were asked; what the one
    before wrote is scored by the R of now. None: they share no task."""
    common = [row for row in before if row.triplet_id in student]
    if not common:
        return None
    triplets = {row.triplet_id: triplet for row in common if (triplet := _triplet(row)) is not None}
    value = dict(zip(triplets, scores(ctx, [*triplets.values()], answer_format), strict=True))
    old = [ProbeAnswer(triplets.get(row.triplet_id), _finite(value.get(row.triplet_id)), None) for row in common]
    new = [student[row.triplet_id] for row in common]
    shares = [sum(gate.accepts(answer, accepts_above) for answer in each) / len(common) for each in (new, old)]
    return shares[0], shares[1]


def row(task: Task, answer: Answer, student: ProbeAnswer, candidate: Candidate, first: ProbeAnswer) -> ProbeRow:
    """The row of a task."""
    said = student.triplet
    return ProbeRow(
        triplet_id=task.triplet_id,
        image_sha256=task.image_sha256,
        modality=task.modality,
        question_type=task.question_type,
        outcome=answer.outcome,
        attempts=answer.attempts,
        question=said.question if said else "",
        options=said.options if said else (),
        answer_index=said.answer_index if said else None,
        rationale=said.rationale if said else "",
        response=said.response if said else "",
        score=student.score,
        agreed=student.agreed,
        first_outcome=candidate.outcome,
        first_score=first.score,
        first_agreed=first.agreed,
    )


def first_triplet(candidate: Candidate, task: Task) -> Triplet | None:
    """What the first generator said, under the kind of question that it was asked for."""
    found = triplet_of(candidate)
    return None if found is None else replace(found, question_type=task.question_type)


def _triplet(row: ProbeRow) -> Triplet | None:
    if row.outcome is not CandidateOutcome.OK or row.answer_index is None:
        return None
    return Triplet(
        row.triplet_id, 0, row.image_sha256, row.modality, row.question_type, row.question, row.options,
        row.answer_index, row.rationale, row.response,
    )  # fmt: skip


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _between(ctx: StageContext[Any], phase: str, total: int) -> Any:
    def between(done: int) -> None:
        ctx.progress(phase, done, total)
        ctx.check_stop()

    return between
