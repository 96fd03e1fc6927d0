"""Stage generate: candidates, question by question, about training images."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence

from medgr2_api.generator import Scripted
from medgr2_api.stages.generate import GenerateParameters

from ..errors import ConfigError, DataError, TemporaryError
from ..generate import sampling_plan
from ..generate.prepared_images import ImageUse, PreparedImages
from ..generate.sampling_plan import Task
from ..runner.context import StageContext, StageOutcome
from ..store import manifest
from ..store.rows import Candidate, CandidateOutcome, PhantomRow, Truth

#: Rows between two progress notes of the scripted generator.
_BLOCK = 256


def run(ctx: StageContext[GenerateParameters]) -> StageOutcome:
    """Writes `candidates`, and for the scripted generator `truth`."""
    if ctx.parameters.provider.about.asked:
        rows, withheld = asyncio.run(_from_provider(ctx))
    else:
        rows, withheld = _scripted(ctx), 0
    ctx.writer.table(Candidate, rows)
    return StageOutcome(counters={**_counters(rows), "images_withheld": withheld})


async def _from_provider(ctx: StageContext[GenerateParameters]) -> tuple[list[Candidate], int]:
    """Candidates of a provider, and how many images it may not see."""
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
            allowed = allowed_images(session.egress, training_images)
            tasks = _tasks(ctx, allowed, ctx.parameters.question_types)

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
    return rows, len(training_images) - len(allowed)


def _tasks(
    ctx: StageContext[GenerateParameters],
    images: Mapping[str, str],
    question_types: Sequence[str],
    max_per_image: int | None = None,
) -> list[Task]:
    """This shard's tasks about these images (sha256 → modality)."""
    parameters = ctx.parameters
    if parameters.candidates and not images:
        raise DataError("the training split has no image to ask about; see the quarantine table of stage prepare")
    if not question_types:
        raise ConfigError("generator.questionTypes: must name at least one")
    return sampling_plan.tasks(
        images,
        ctx.input("prepare").digest,
        iteration=parameters.iteration,
        candidates=parameters.candidates,
        per_image=min(parameters.questions_per_image, max_per_image or parameters.questions_per_image),
        question_types=question_types,
        shard=ctx.request.shard,
    )


def _scripted(ctx: StageContext[GenerateParameters]) -> list[Candidate]:
    """Candidates made by code, which knows what each phantom shows."""
    from ..data.synthetic_images import KINDS, Attributes
    from ..generate import scripted_generator

    parameters = ctx.parameters
    script = parameters.provider.scripted
    if script is None:
        raise ConfigError("generator.scripted: its settings are missing")
    prepare = ctx.input("prepare")
    phantoms = prepare.rows(PhantomRow) if prepare.has("phantoms.parquet") else []
    attributes = {
        phantom.image_sha256: Attributes(phantom.modality, phantom.finding, phantom.location, phantom.count)
        for phantom in phantoms
    }
    # a phantom has one question of each kind: asking for more asks more phantoms
    images = sampling_plan.training_images(prepare.rows(ImageUse))
    tasks = _tasks(ctx, images, KINDS, max_per_image=len(KINDS))
    rows: list[Candidate] = []
    truth: list[Truth] = []
    for number, task in enumerate(tasks):
        if task.image_sha256 not in attributes:
            raise ConfigError(
                f"generator.scripted: image {task.image_sha256[:12]} is no phantom; the script knows phantoms only. "
                "Use another generator for real images"
            )
        rng = scripted_generator.rng_for(parameters.seed, task.image_sha256, task.question_type)
        proposal = scripted_generator.propose(
            attributes[task.image_sha256], task.question_type, rng, script, parameters.answer_format
        )
        truth.append(Truth(task.triplet_id, proposal.kind, proposal.correct))
        rows.append(
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
    ctx.writer.table(Truth, truth)
    return rows


def _counters(rows: Sequence[Candidate]) -> dict[str, float]:
    """How many rows came out how."""
    outcomes = Counter(row.outcome for row in rows)
    counters: dict[str, float] = {
        "candidates": len(rows),
        "ok": outcomes.pop(CandidateOutcome.OK, 0),
        "images": len({row.image_sha256 for row in rows}),
        "input_tokens": sum(row.input_tokens or 0 for row in rows),
        "output_tokens": sum(row.output_tokens or 0 for row in rows),
        "thinking_tokens": sum(row.thinking_tokens or 0 for row in rows),
    }
    return counters | {str(outcome): count for outcome, count in sorted(outcomes.items())}
