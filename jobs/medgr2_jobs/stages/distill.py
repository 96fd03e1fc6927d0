"""Stage distill: a student learns to generate from D_gen, and is measured beside the first generator
(docs/distillation.md)."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medgr2_api.stages.distill import DistillParameters

from ..distill import gate, probe, student_format
from ..distill.gate import StudentGate
from ..distill.lessons import INFO_FILE, Lesson, earlier_students, lessons, origins
from ..distill.probe import AskedPolicy, Probe
from ..distill.sampler import Asking, Student, ask
from ..engine.in_process import InProcessSampler
from ..generate.prepared_images import PreparedImages
from ..models import checkpoint, vlm
from ..models.checkpoint import Checkpoint
from ..models.generation import Decoding
from ..models.vlm import Encoder
from ..policy.fine_tuning import fine_tune
from ..policy.model import save
from ..runner.context import StageContext, StageOutcome
from ..store import atomic
from ..store.rows.training import ProbeRow, TaughtRow

Context = StageContext[DistillParameters]
#: In the work folder: the student, once it is trained.
_TRAINED = "student"
_LOG = "log.json"


def run(ctx: Context) -> StageOutcome:
    """Teaches a student and publishes `model/`, tables `rows` and `probe`, `gate.json`, `student.json` and `log.json`.
    One that does not pass its gate is published too, for inspection.

    Raises:
        ConfigError: a trainer option is unknown, owned or refused; no usable model.
        DataError: D_gen has nothing to teach.
        Checkpointed: asked to stop; what was trained and asked stays.
    """
    return teach(ctx, lessons(ctx, ctx.parameters.answer_format))


def teach(ctx: Context, taught: Sequence[Lesson]) -> StageOutcome:
    """As `run`, on these lessons."""
    parameters = ctx.parameters
    folder = _trained(ctx, taught)
    ctx.writer.take("model", folder)
    atomic.write_text(ctx.writer.path(_LOG, digested=False), (ctx.work / _LOG).read_text())

    student = Student.load(ctx, folder, _longest(folder, ctx, taught))
    measured = Probe.of(ctx)
    how = Asking(
        Decoding(parameters.sampling.temperature, parameters.sampling.top_p),
        parameters.max_attempts,
        parameters.seed,
        parameters.answer_format,
    )
    answered = ask(ctx, student, measured.tasks, how, "probe")
    decision, rows = _judged(ctx, student, measured, answered)

    ctx.writer.table(TaughtRow, [_row(lesson) for lesson in taught])
    ctx.writer.table(ProbeRow, rows)
    _write_json(ctx, "gate.json", decision.dump())
    depth = 1 + max(lesson.depth for lesson in taught)
    origin = origins(PreparedImages.published(ctx.input("prepare")), taught)
    info = {
        "depth": depth,
        "maxNewTokens": student.longest,
        "template": student_format.template_sha256(parameters.answer_format),
        "sources": origin.sources,
        "mayLeave": origin.may_leave,
    }
    _write_json(ctx, INFO_FILE, info)
    return StageOutcome(counters=_counters(taught, decision, depth), promoted=decision.passed)


def _trained(ctx: Context, taught: Sequence[Lesson]) -> Path:
    """The folder of the trained student, with its log beside it; trained by an earlier attempt, or now."""
    folder, log = ctx.work / _TRAINED, ctx.work / _LOG
    if not log.is_file():  # it is written last
        prepare = ctx.input("prepare")
        base = prepare.folder_of("models/student" if prepare.has("models/student/config.json") else "models/policy")
        examples = [
            lesson.example(
                student_format.prompt(lesson.row.question_type, lesson.row.modality, ctx.parameters.answer_format)
            )
            for lesson in taught
        ]
        training = ctx.parameters.training
        tuned = fine_tune(ctx, examples, Checkpoint(base), training, settings="generator.distillation.training")
        atomic.remove_tree(folder)
        save(tuned.model, tuned.start, folder)
        atomic.fsync_tree(folder)
        atomic.write_text(log, json.dumps(tuned.log, indent=1))
    return folder


def _longest(folder: Path, ctx: Context, taught: Sequence[Lesson]) -> int:
    """Tokens that the student may write: a quarter more than the longest lesson, and 8; at most what is asked of any
    generator."""
    tokenizer = Encoder(vlm.load_processor(folder), ctx.images).tokenizer
    ids = tokenizer([lesson.text for lesson in taught], add_special_tokens=False)["input_ids"]
    return min(ctx.parameters.sampling.max_tokens, math.ceil(1.25 * max(map(len, ids))) + 8)


def _judged(
    ctx: Context, student: Student, measured: Probe, answered: Sequence[student_format.Answer]
) -> tuple[StudentGate, list[ProbeRow]]:
    """The gate's decision, and the rows of the probe."""
    parameters, iteration = ctx.parameters, ctx.request.iteration
    answers = {answer.triplet_id: answer for answer in answered}
    by_student = {
        task.triplet_id: student_format.triplet(
            answers[task.triplet_id], task, iteration, parameters.answer_format, parameters.seed
        )
        for task in measured.tasks
    }
    by_first = {task.triplet_id: probe.first_triplet(measured.first[task.triplet_id], task) for task in measured.tasks}
    asked = checkpoint.published(ctx, "policy")
    policy = AskedPolicy(InProcessSampler(asked), Encoder(asked.processor(), ctx.images), parameters.answer_format)
    known = probe.gold(ctx, student, policy)
    mine, theirs = probe.judged(ctx, by_student, by_first, policy)
    accepts_above = probe.threshold(ctx)
    before = _in_force(ctx)
    decision = gate.decide(
        gate.compared(mine, theirs, accepts_above),
        gate.acceptance_gain(mine, theirs, measured.images, accepts_above, parameters.seed),
        known,
        probe.in_force(ctx, before, mine, parameters.answer_format, accepts_above) if before else None,
        parameters.promotion,
        accepts_above,
    )
    rows = [
        probe.row(task, answers[name], mine[name], measured.first[name], theirs[name])
        for task in measured.tasks
        if (name := task.triplet_id)
    ]
    return decision, rows


def _in_force(ctx: Context) -> list[ProbeRow]:
    """The probe of the student that generates now; nothing: none does."""
    promoted = [student for student in earlier_students(ctx).values() if student.manifest.promoted]
    return promoted[-1].rows(ProbeRow) if promoted else []


def _row(lesson: Lesson) -> TaughtRow:
    row = lesson.row
    return TaughtRow(row.row_id, row.origin.value, row.iteration, row.image_sha256, row.generator, lesson.depth)


def _write_json(ctx: Context, name: str, document: Any) -> None:
    atomic.write_text(ctx.writer.path(name), json.dumps(document, indent=1, sort_keys=True) + "\n")


def _counters(taught: Sequence[Lesson], decision: StudentGate, depth: int) -> dict[str, float]:
    """Headlines of the gate, and how many rows of each origin and depth were taught."""
    student, first = decision.student, decision.first
    by_origin = Counter(f"rows_{lesson.row.origin.value}" for lesson in taught)
    by_depth = Counter(f"rows_depth_{lesson.depth}" for lesson in taught)
    figures: dict[str, float | None] = {
        "probe_tasks": student.tasks,
        "parsed": student.parsed,
        "accepted": student.accepted,
        "first_accepted": first.accepted,
        "entropy": student.entropy,
        "first_entropy": first.entropy,
        "option_prior": student.option_prior,
        "first_option_prior": first.option_prior,
        "agreement": student.agreement,
        "first_agreement": first.agreement,
        "gold": decision.gold.student if decision.gold else None,
    }
    return {
        "rows": len(taught),
        "depth": depth,
        **dict(sorted(by_origin.items())),
        **dict(sorted(by_depth.items())),
        **{name: float(value) for name, value in figures.items() if value is not None},
        "gate_passed": float(decision.passed),
    }
