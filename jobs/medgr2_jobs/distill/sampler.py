"""Asks a student its tasks, in parts with a seed each: whatever interrupts the stage, every part comes out the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from medgr2_api.training_spec import AnswerFormat

from ..generate.sampling_plan import Task
from ..models import vlm
from ..models.generation import Decoding
from ..models.vlm import Encoder, PromptResponse
from ..runner.context import StageContext
from ..store import atomic
from ..store.rows.candidates import CandidateOutcome
from . import student_format
from .student_format import Answer

#: Tasks of one part: what a `kill -9` may cost.
PART_TASKS = 128


@dataclass(frozen=True)
class Student:
    """A student that can be asked."""

    model: Any
    encoder: Encoder
    longest: int
    """Tokens that it may write."""

    @classmethod
    def load(cls, ctx: StageContext[Any], folder: Path, longest: int) -> Student:
        """From a model folder."""
        return cls(vlm.load_model(folder), Encoder(vlm.load_processor(folder), ctx.images), longest)


@dataclass(frozen=True)
class Asking:
    """How it is asked."""

    decoding: Decoding
    max_attempts: int
    """How often a task is asked at most, each time with another seed, until a triplet comes of it."""
    seed: int
    answer_format: AnswerFormat


def ask(ctx: StageContext[Any], student: Student, tasks: Sequence[Task], how: Asking, name: str) -> list[Answer]:
    """An answer for each task, in their order.

    Args:
        ctx: the stage's; finished parts lie in its work folder.
        student: whom to ask.
        tasks: what; with the same tasks in the same order everything comes out the same.
        how: settings.
        name: of these tasks, among all that the stage asks: part of file names and seeds.

    Raises:
        Checkpointed: asked to stop; finished parts stay.
    """
    answered: list[Answer] = []
    parts = list(vlm.chunks(tasks, PART_TASKS))
    for index, part in enumerate(parts):
        ctx.progress(f"ask {name}", index, len(parts))
        path = ctx.work / f"{name}-{index:05d}.json"
        done = _finished(path, part)
        if done is None:
            ctx.check_stop(index)
            done = _asked(student, part, how, f"{how.seed}/{name}/{index}")
            atomic.write_text(path, json.dumps([asdict(answer) for answer in done]))
        answered += done
    ctx.progress(f"ask {name}", len(parts), len(parts))
    return answered


def _asked(student: Student, tasks: Sequence[Task], how: Asking, seed: str) -> list[Answer]:
    """A part's answers. What fails is asked again with another seed: a student has not learnt to correct itself."""
    answers: dict[str, Answer] = {}
    left = list(tasks)
    for attempt in range(1, how.max_attempts + 1):
        torch.manual_seed(int.from_bytes(hashlib.sha256(f"{seed}/{attempt}".encode()).digest()[:4], "big"))
        texts = vlm.generate(
            student.model,
            student.encoder,
            [
                PromptResponse(
                    task.image_sha256, student_format.prompt(task.question_type, task.modality, how.answer_format)
                )
                for task in left
            ],
            max_new_tokens=student.longest,
            decoding=how.decoding,
            batch_size=len(left),
        )
        for task, text in zip(left, texts, strict=True):
            answers[task.triplet_id] = student_format.read(text, task, attempt)
        left = [task for task in left if answers[task.triplet_id].outcome is not CandidateOutcome.OK]
        if not left:
            break
    return [answers[task.triplet_id] for task in tasks]


def _finished(path: Path, tasks: Sequence[Task]) -> list[Answer] | None:
    """The answers that an earlier attempt of the stage got to these tasks; None when they have to be asked."""
    if not path.is_file():
        return None
    answers = [
        Answer(**{**row, "outcome": CandidateOutcome(row["outcome"]), "options": tuple(row["options"])})
        for row in json.loads(path.read_text())
    ]
    same = [answer.triplet_id for answer in answers] == [task.triplet_id for task in tasks]
    return answers if same else None
