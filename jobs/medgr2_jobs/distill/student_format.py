"""What a student is asked and what it writes: a short prompt, and the fewest fields. Needs no torch.

It writes the question and each option on a line of its own, then rationale and answer as the policy does, the answer
as text: which letter it has is dealt by code. Fields that say the same twice (letter and text) would be work for the
model, and most of what it gets wrong.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from medgr2_api.training_spec import AnswerFormat

from ..curate import option_shuffle
from ..curate.training_set import TrainingRow
from ..generate import candidate_schema
from ..generate.candidate_schema import OPTION_COUNT
from ..generate.sampling_plan import Task
from ..prompts import answers
from ..prompts.answers import Askable
from ..store.rows.candidates import Candidate, CandidateOutcome, Triplet

#: `Candidate.paradigm` of what a student writes.
PARADIGM = "Student"
#: The prompts of small models, which learn the task from examples, and of those that can be told.
_PROMPTS = {
    AnswerFormat.OPTION_TEXT: "Ask: {kind}",
    AnswerFormat.LETTER: (
        "Write a multiple-choice question of the kind {kind} about this image ({modality}): the question on one line, "
        f"then {OPTION_COUNT} options on a line each, then what the image shows inside <think> </think>, then the "
        "right option, word for word, inside <answer> </answer>."
    ),
}
_THINK = re.compile(r"<think>(.*)</think>", re.DOTALL)
_TEXT = r"((?:(?!</?(?:think|answer)>).)*)"
_WRITTEN = re.compile(rf"{_TEXT}<think>{_TEXT}</think>\s*<answer>{_TEXT}</answer>", re.DOTALL)
#: What a chat template that opens the thinking itself leaves before an answer that goes without (`Encoder.answered`).
_NO_THOUGHT = "<think></think>"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a task; the parts of a triplet only where the outcome is ok."""

    triplet_id: str
    outcome: CandidateOutcome
    attempts: int
    question: str = ""
    options: tuple[str, ...] = ()
    answer_index: int | None = None
    rationale: str = ""


def template_sha256(answer_format: AnswerFormat) -> str:
    """Names the prompt's template by its content."""
    return hashlib.sha256(_PROMPTS[answer_format].encode()).hexdigest()


def prompt(question_type: str, modality: str, answer_format: AnswerFormat) -> str:
    """What a student is asked, beside the image."""
    return _PROMPTS[answer_format].format(kind=question_type, modality=modality)


def asked(row: Askable) -> str:
    """Question and options as a student writes them, each with its line's end: what its answer begins with."""
    return "".join(f"{_on_a_line(text)}\n" for text in (row.question, *row.options))


def taught(row: TrainingRow) -> str | None:
    """A row of D_gen as the student shall write it; None where that cannot be said in its format.

    So it is with another number of options, and with words that depend on the options' order, for it will be another.
    """
    found = _THINK.search(row.response)
    rationale = _on_a_line(found[1]) if found else ""
    if len(row.options) != OPTION_COUNT or not rationale:
        return None
    if option_shuffle.speaks_of_order(row.question, rationale, row.options):
        return None
    options = [_on_a_line(option) for option in row.options]
    return asked(row) + answers.response(rationale, row.answer_index, options, AnswerFormat.OPTION_TEXT)


def read(text: str, task: Task, attempts: int) -> Answer:
    """Reads what a student wrote, by the rules for every generator (`candidate_schema`)."""
    found = _WRITTEN.fullmatch(text.removeprefix(_NO_THOUGHT).strip())
    if found is None:
        outcome = CandidateOutcome.SCHEMA if text.strip() else CandidateOutcome.EMPTY
        return Answer(task.triplet_id, outcome, attempts)
    question, *options = [line.strip() for line in found[1].splitlines() if line.strip()] or [""]
    normalised, right = [answers.normalise(option) for option in options], answers.normalise(found[3])
    letter = answers.LETTERS[normalised.index(right)] if right in normalised else ""
    outcome, said = candidate_schema.judge(
        {
            "question": question,
            "question_type": task.question_type,
            "options": options,
            "answer_letter": letter,
            "answer_text": found[3],
            "rationale": found[2],
            "image_findings": [],
            "self_check": "",
        }
    )
    if said is None:
        return Answer(task.triplet_id, outcome, attempts)
    return Answer(task.triplet_id, outcome, attempts, said.question, said.options, said.answer_index, said.rationale)


def triplet(answer: Answer, task: Task, iteration: int, answer_format: AnswerFormat, seed: int) -> Triplet | None:
    """The triplet of an answer, its letters dealt anew; None where nothing usable came of the task."""
    if answer.answer_index is None:
        return None

    def in_order(options: tuple[str, ...], right: int) -> Triplet:
        response = answers.response(answer.rationale, right, options, answer_format)
        return Triplet(
            task.triplet_id, iteration, task.image_sha256, task.modality, task.question_type,
            answer.question, options, right, answer.rationale, response,
        )  # fmt: skip

    plain = in_order(answer.options, answer.answer_index)
    order = option_shuffle.option_order(plain, answer_format, seed)
    if order is None:
        return plain
    return in_order(tuple(answer.options[place] for place in order), order.index(answer.answer_index))


def candidate(
    answer: Answer, task: Task, generator: str, iteration: int, answer_format: AnswerFormat, seed: int
) -> Candidate:
    """The row of a task that the student was asked.

    Args:
        answer: what came of it.
        task: the task.
        generator: the student's name (`store.rows.candidates.student_name`).
        iteration: of the task.
        answer_format: how responses are written.
        seed: by which letters are dealt.
    """
    said = triplet(answer, task, iteration, answer_format, seed)
    return Candidate(
        triplet_id=task.triplet_id,
        iteration=iteration,
        image_sha256=task.image_sha256,
        modality=task.modality,
        question_type=task.question_type,
        question=said.question if said else "",
        options=said.options if said else (),
        answer_index=said.answer_index if said else None,
        rationale=said.rationale if said else "",
        response=said.response if said else "",
        paradigm=PARADIGM,
        template_sha256=template_sha256(answer_format),
        generator=generator,
        outcome=answer.outcome,
        error="",
        attempts=answer.attempts,
        input_tokens=None,
        output_tokens=None,
        thinking_tokens=None,
        usd=0.0,
    )


def _on_a_line(text: str) -> str:
    return " ".join(text.split())
