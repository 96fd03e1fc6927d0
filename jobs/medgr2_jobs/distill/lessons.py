"""What a student learns from: rows of D_gen that are not the probe's, with how many students stand behind each."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medgr2_api.training_spec import AnswerFormat

from ..curate.training_set import Origin, TrainingRow, training_set
from ..errors import CorruptArtifact, DataError
from ..generate import sampling_plan
from ..generate.candidate_schema import OPTION_COUNT
from ..generate.prepared_images import ImageUse, PreparedImages
from ..models.vlm import PromptResponse
from ..runner.context import StageContext
from ..store.artifact import ArtifactReader
from ..store.rows.candidates import is_student, student_name
from . import student_format
from .task_split import in_probe

INFO_FILE = "student.json"
#: Least share of rows that are the seed's or the first generator's: of its own rows alone a student narrows.
FIRST_SHARE = 0.3


@dataclass(frozen=True)
class Lesson:
    """A row that is taught."""

    row: TrainingRow
    depth: int
    """How many students stand behind it: 0 for the seed and the first generator."""
    text: str
    """What the student shall write."""

    def example(self, prompt: str) -> tuple[str, PromptResponse]:
        """As training takes it."""
        return self.row.row_id, PromptResponse(self.row.image_sha256, prompt, self.text)


@dataclass(frozen=True)
class Origins:
    """Whose pictures were learnt from: what may become of the student's rows follows from that."""

    sources: list[str]
    """Names of the sources and benchmarks that have one of them."""
    may_leave: bool
    """All of them may be sent to an external provider."""


def lessons(ctx: StageContext[Any], answer_format: AnswerFormat) -> list[Lesson]:
    """The rows of D_gen that a student of this iteration learns from, in D_gen's order.

    Left out are rows of the probe's pictures, of pictures that are held out in any split, and what its format cannot
    say. Students' rows are dropped, by hash, until `FIRST_SHARE` of all are the seed's or the first generator's.

    Args:
        ctx: the stage's, with the inputs of D_gen and earlier students as `students-t`.
        answer_format: how D_gen is written.

    Raises:
        DataError: nothing is left.
        CorruptArtifact: a candidate's student is not among the inputs.
    """
    iteration = ctx.request.iteration
    free = sampling_plan.training_images(ctx.input("prepare").rows(ImageUse))
    depths = student_depths(ctx)
    found: list[Lesson] = []
    for row in training_set(ctx, iteration, answer_format):
        if row.image_sha256 not in free or in_probe(row.image_sha256):
            continue
        text = student_format.taught(row)
        if text is not None:
            found.append(Lesson(row, _depth(row, depths), text))
    if not found:
        raise DataError(
            f"no row of D_gen can be taught: students learn from questions with {OPTION_COUNT} options "
            "about pictures outside the probe; add seed questions, or leave generator.distillation out"
        )
    return with_first_share(found, ctx.parameters.seed)


def with_first_share(found: Sequence[Lesson], seed: int) -> list[Lesson]:
    """The lessons, with so few of students' own that `FIRST_SHARE` of them are not."""
    own = [lesson for lesson in found if lesson.depth > 0]
    first = len(found) - len(own)
    most = math.floor(first * (1 - FIRST_SHARE) / FIRST_SHARE)
    own.sort(key=lambda lesson: hashlib.sha256(f"own/{seed}/{lesson.row.row_id}".encode()).digest())
    dropped = {lesson.row.row_id for lesson in own[most:]}
    return [lesson for lesson in found if lesson.row.row_id not in dropped]


def student_depths(ctx: StageContext[Any]) -> dict[str, int]:
    """Depth of each earlier student by its name as a generator: one more than the deepest row that it learnt from."""
    return {
        student_name(t, student.digest): int(info(student)["depth"]) for t, student in earlier_students(ctx).items()
    }


def earlier_students(ctx: StageContext[Any]) -> dict[int, ArtifactReader]:
    """Artifacts of stage distill of earlier iterations, promoted or not."""
    return {t: ctx.input(f"students-{t}") for t in range(1, ctx.request.iteration) if ctx.has_input(f"students-{t}")}


def info(student: ArtifactReader) -> Mapping[str, Any]:
    """What `student.json` of a student says.

    Raises:
        CorruptArtifact: it is missing or damaged.
    """
    document: dict[str, Any] = json.loads(student.file(INFO_FILE).read_text())
    return document


def origins(images: PreparedImages, taught: Sequence[Lesson]) -> Origins:
    """Where the pictures of the lessons come from."""
    seen = {lesson.row.image_sha256 for lesson in taught}
    names = {name for sha256 in seen for name in images.origins.get(sha256, ())}
    private = {row.image_sha256 for row in images.rows if row.allow_external is not True}
    return Origins(sorted(names), not seen & private)


def _depth(row: TrainingRow, depths: Mapping[str, int]) -> int:
    if row.origin is Origin.SEED or not is_student(row.generator):
        return 0
    if row.generator not in depths:
        raise CorruptArtifact(
            f"row {row.row_id} was written by {row.generator}, which is not among the students of this cycle; run "
            f"stage generate of iteration {row.iteration} again (`--restart-from`)"
        )
    return depths[row.generator]
