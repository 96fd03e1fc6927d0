"""Stage generate: candidates, question by question, about training images."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from medgr2_api.generator import Scripted
from medgr2_api.stages.generate import GenerateParameters

from ..data.synthetic_images import KINDS, Attributes
from ..distill.task_split import is_students
from ..errors import ConfigError, DataError, TemporaryError
from ..generate import sampling_plan
from ..generate.prepared_images import ImageUse, PreparedImages
from ..generate.sampling_plan import Task
from ..runner.context import StageContext, StageOutcome
from ..store import manifest
from ..store.rows.candidates import Candidate, CandidateOutcome, Truth, student_name
from ..store.rows.prepared import PhantomRow

Context = StageContext[GenerateParameters]
#: Rows between two progress notes of the scripted generator.
_BLOCK = 256


@dataclass
class _Answered:
    """What a generator made of its tasks, and what it leaves to the student."""

    rows: list[Candidate]
    left: list[Task]
    """The student's tasks; none where there is no student."""
    order: list[str]
    """Ids of all tasks, in their order."""
    withheld: int = 0
    """Images that nobody may be asked about: they may not leave the site."""
    truth: list[Truth] = field(default_factory=list)


def run(ctx: Context) -> StageOutcome:
    """Writes `candidates`, and for the scripted generator `truth`."""
    scripted = not ctx.parameters.provider.about.asked
    if _share(ctx) >= 1:
        tasks = _tasks(ctx, sampling_plan.training_images(ctx.input("prepare").rows(ImageUse)))
        answered = _Answered([], tasks, [task.triplet_id for task in tasks])
    else:
        answered = _scripted(ctx) if scripted else asyncio.run(_from_provider(ctx))
    rows = {row.triplet_id: row for row in answered.rows}
    by_student = _from_student(ctx, answered.left) if answered.left else []
    rows |= {row.triplet_id: row for row in by_student}
    ordered = [rows[name] for name in answered.order]
    if scripted:
        ctx.writer.table(Truth, answered.truth + _truth(ctx, by_student))
    ctx.writer.table(Candidate, ordered)
    return StageOutcome(counters={**_counters(ordered, by_student), "images_withheld": answered.withheld})


def _share(ctx: Context) -> float:
    """The student's share of the tasks; 0 where none is promoted."""
    student = ctx.parameters.student
    return student.share if student is not None and ctx.has_input("student") else 0.0


async def _from_provider(ctx: Context) -> _Answered:
    """Candidates of a provider. Images that it may not see are the student's, if there is one."""
    from ..generate import provider_session  # the scripted generator needs none of the providers' packages
    from ..generate.egress_policy import allowed_images
    from ..generate.journal import Journal
    from ..generate.request_scheduler import RequestScheduler

    request, images = ctx.request, PreparedImages.published(ctx.input("prepare"))
    account = provider_session.BillingAccount(
        request.cycle, request.input_hash, request.generator_budget_usd, request.shard
    )
    journal = Journal(ctx.writer.shared, provider_session.holder_identity(request.cycle, request.attempt))
    try:
        if manifest.load(ctx.writer.base) is not None:  # while we waited for the journal
            raise TemporaryError(f"{ctx.writer.base}: published by another cycle just now; run again to use it")
        async with provider_session.open_session(
            ctx.root, account, ctx.parameters, images, journal, request.grace_seconds
        ) as session:
            training_images = sampling_plan.training_images(images.rows)
            allowed, share = allowed_images(session.egress, training_images), _share(ctx)
            planned = _tasks(ctx, training_images if share else allowed)
            # where there is no student nothing is left to it: what may not leave is for the gate to refuse
            left = [
                task for task in planned if share and (task.image_sha256 not in allowed or is_students(task, share))
            ]
            others = {task.triplet_id for task in left}
            tasks = [task for task in planned if task.triplet_id not in others]

            def report(done: int, figures: dict[str, float]) -> None:
                ctx.progress("generate", done, len(tasks), **figures)

            try:
                rows = await RequestScheduler(session, tasks, ctx.stop, report).run()
            finally:
                if session.ledger is not None:
                    session.ledger.release()
                    ctx.usage["generatorUSD"] = session.ledger.spent
    finally:
        await journal.close()
    withheld = 0 if share else len(training_images) - len(allowed)
    return _Answered(rows, left, [task.triplet_id for task in planned], withheld)


def _tasks(ctx: Context, images: Mapping[str, str]) -> list[Task]:
    """This shard's tasks about these images (sha256 → modality)."""
    parameters = ctx.parameters
    if parameters.candidates and not images:
        raise DataError("the training split has no image to ask about; see the quarantine table of stage prepare")
    question_types, per_image = parameters.question_types, parameters.questions_per_image
    if not parameters.provider.about.asked:
        # a phantom has one question of each kind: asking for more asks more phantoms
        question_types, per_image = [*KINDS], min(per_image, len(KINDS))
    if not question_types:
        raise ConfigError("generator.questionTypes: must name at least one")
    return sampling_plan.tasks(
        images,
        ctx.input("prepare").digest,
        iteration=parameters.iteration,
        candidates=parameters.candidates,
        per_image=per_image,
        question_types=question_types,
        shard=ctx.request.shard,
    )


def _scripted(ctx: Context) -> _Answered:
    """Candidates made by code, which knows what each phantom shows."""
    from ..generate import scripted_generator

    parameters = ctx.parameters
    script = parameters.provider.scripted
    if script is None:
        raise ConfigError("generator.scripted: its settings are missing")
    attributes = _phantoms(ctx)
    tasks = _tasks(ctx, sampling_plan.training_images(ctx.input("prepare").rows(ImageUse)))
    answered = _Answered([], [], [task.triplet_id for task in tasks])
    for number, task in enumerate(tasks):
        if task.image_sha256 not in attributes:
            raise ConfigError(
                f"generator.scripted: image {task.image_sha256[:12]} is no phantom; the script knows phantoms only. "
                "Use another generator for real images"
            )
        if is_students(task, _share(ctx)):
            answered.left.append(task)
            continue
        rng = scripted_generator.rng_for(parameters.seed, task.image_sha256, task.question_type)
        proposal = scripted_generator.propose(
            attributes[task.image_sha256], task.question_type, rng, script, parameters.answer_format
        )
        answered.truth.append(Truth(task.triplet_id, proposal.kind, proposal.correct))
        answered.rows.append(
            Candidate(
                triplet_id=task.triplet_id,
                iteration=parameters.iteration,
                image_sha256=task.image_sha256,
                modality=task.modality,
                question_type=task.question_type,
                question=proposal.question,
                options=proposal.options,
                answer_index=proposal.answer_index,
                rationale=proposal.rationale,
                response=proposal.response,
                paradigm="",
                template_sha256="",
                generator=Scripted.kind,
                outcome=CandidateOutcome.OK,
                error="",
                attempts=1,
                input_tokens=None,
                output_tokens=None,
                thinking_tokens=None,
                usd=0.0,
            )
        )
        if number % _BLOCK == 0:
            ctx.progress("generate", number, len(tasks))
            ctx.check_stop()
    return answered


def _from_student(ctx: Context, tasks: Sequence[Task]) -> list[Candidate]:
    """Candidates of the student in force, in this process: its images stay where they are."""
    from ..distill import student_format  # which needs torch, as the other generators do not
    from ..distill.lessons import info
    from ..distill.sampler import Asking, Student, ask
    from ..models.generation import Decoding

    parameters, taught = ctx.parameters, ctx.input("student")
    if parameters.student is None:
        raise ConfigError("generator.distillation: absent, and yet there is a student")
    name = student_name(ctx.request.inputs["student"].iteration, taught.digest)
    student = Student.load(ctx, taught.folder_of("model"), int(info(taught)["maxNewTokens"]))
    sampling = parameters.sampling
    how = Asking(
        Decoding(sampling.temperature, sampling.top_p),
        parameters.student.max_attempts,
        parameters.seed,
        parameters.answer_format,
    )
    answers = ask(ctx, student, tasks, how, f"student-{ctx.request.shard.index}")
    return [
        student_format.candidate(answer, task, name, parameters.iteration, parameters.answer_format, parameters.seed)
        for answer, task in zip(answers, tasks, strict=True)
    ]


def _phantoms(ctx: Context) -> dict[str, Attributes]:
    """What each phantom shows, by its sha256."""
    prepare = ctx.input("prepare")
    phantoms = prepare.rows(PhantomRow) if prepare.has("phantoms.parquet") else []
    return {
        phantom.image_sha256: Attributes(phantom.modality, phantom.finding, phantom.location, phantom.count)
        for phantom in phantoms
    }


def _truth(ctx: Context, rows: Sequence[Candidate]) -> list[Truth]:
    """Whether a student's triplets about phantoms are right."""
    attributes = _phantoms(ctx) if rows else {}
    return [
        Truth(row.triplet_id, "student", answer == attributes[row.image_sha256].value(row.question_type))
        for row in rows
        if row.options and row.answer_index is not None and (answer := row.options[row.answer_index])
    ]


def _counters(rows: Sequence[Candidate], by_student: Sequence[Candidate]) -> dict[str, float]:
    """How many rows came out how, and how many of them are the student's."""
    outcomes = Counter(row.outcome for row in rows)
    counters: dict[str, float] = {
        "candidates": len(rows),
        "ok": outcomes.pop(CandidateOutcome.OK, 0),
        "images": len({row.image_sha256 for row in rows}),
        "input_tokens": sum(row.input_tokens or 0 for row in rows),
        "output_tokens": sum(row.output_tokens or 0 for row in rows),
        "thinking_tokens": sum(row.thinking_tokens or 0 for row in rows),
    }
    if by_student:
        counters["student_candidates"] = len(by_student)
        counters["student_ok"] = sum(row.outcome is CandidateOutcome.OK for row in by_student)
    return counters | {str(outcome): count for outcome, count in sorted(outcomes.items())}
