"""How attempts move on: a table from (recorded state, what is observed) to the transition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from medgr2_api.cycle import CycleSpec
from medgr2_api.stage_contract import Progress, StageResult
from medgr2_api.stages import definition
from medgr2_api.status import AttemptState, StageStatus
from medgr2_api.waiting import WaitingReason

from .failure_policy import AttemptEnd, FailureClass, StopReason, backoff_seconds, classify
from .observation_index import UNKNOWN_UID, AttemptSight, ObservationIndex
from .scores import scores_in
from .status_draft import StatusDraft, cut, seconds_between, stage_of
from .types import ObservedJob, Refusal, StageKey
from .waits import NOT_WAITING, note_wait, waited

_PROGRESS_METRICS = 8


@dataclass(frozen=True)
class AttemptContext:
    """An unfinished attempt, as recorded and as observed."""

    draft: StatusDraft
    spec: CycleSpec
    key: StageKey
    record: StageStatus
    job: ObservedJob | None
    refusal: Refusal | None = None


def advance_attempts(draft: StatusDraft, index: ObservationIndex, spec: CycleSpec) -> None:
    """Brings the record of every unfinished attempt up to what is observed of it."""
    for record in draft.active():
        key, sight, job = stage_of(record), index.sight(record), index.job(record)
        if job is not None:
            record = draft.change(key, job_uid=job.uid)
        _TRANSITIONS[record.state, sight](AttemptContext(draft, spec, key, record, job, index.refusal(record)))


def stop(draft: StatusDraft, key: StageKey, reason: StopReason, message: str = "") -> None:
    """Ends an attempt. The Job is deleted by this plan; the attempt ends when nothing of it is left."""
    if draft.records[key].state is not AttemptState.TERMINATING:
        draft.change(key, state=AttemptState.TERMINATING, **NOT_WAITING, reason=reason, message=cut(message))
        draft.event(str(reason), f"{key}: stopping" + (f": {message}" if message else ""), key)


def _stay(ctx: AttemptContext) -> None:
    """Nothing new."""


def _absent(ctx: AttemptContext) -> None:
    """Never seen: not created yet, and `start` creates it under the same identity. Seen before: it vanished."""
    if ctx.record.job_uid:
        _lost(ctx, "its Job vanished")
    elif ctx.refusal is not None and ctx.refusal.final:
        _end(ctx, AttemptState.FAILED, FailureClass.PERMANENT, WaitingReason.JOB_REFUSED, ctx.refusal.message)
    elif ctx.refusal is not None:
        _wait(ctx, WaitingReason.JOB_REFUSED, ctx.refusal.message)


def _lingers(ctx: AttemptContext) -> None:
    """The Job is gone, its pods are not: whatever they still publish counts, so the attempt ends when they do."""
    if not ctx.record.job_uid:
        ctx.draft.change(ctx.key, job_uid=UNKNOWN_UID)
    stop(ctx.draft, ctx.key, StopReason.VANISHED, "its Job vanished, a pod is still running")


def _waits(ctx: AttemptContext) -> None:
    """Not scheduled, or not started."""
    assert ctx.job is not None
    _wait(ctx, ctx.job.waiting or WaitingReason.STARTING, ctx.job.waiting_message)
    if ctx.job.stuck:
        stop(ctx.draft, ctx.key, StopReason.SIDECAR, ctx.job.stuck)


def _wait(ctx: AttemptContext, reason: WaitingReason, message: str) -> None:
    """The cause goes into the record; after the deadline the stage fails with it."""
    record = note_wait(ctx.draft, ctx.key, reason, message)
    deadline = ctx.spec.stage(ctx.key.name).pending_deadline_seconds or ctx.spec.pending_deadline_seconds
    left = deadline - waited(record, ctx.draft.now)
    if left <= 0:
        cause = ": ".join(filter(None, (reason, message)))
        stop(ctx.draft, ctx.key, StopReason.PENDING_DEADLINE, f"not started in {deadline} s: {cause}")
    elif record.counting_since is not None:
        ctx.draft.wake_in(left)


def _requeued(ctx: AttemptContext) -> None:
    """A queue took its quota back: the attempt waits again, and its clock stands still since its pods ended."""
    assert ctx.job is not None
    ended = ctx.draft.within(ctx.record, ctx.job.finished)
    ctx.draft.end_run(ctx.key, ended)
    ctx.draft.change(ctx.key, state=AttemptState.PENDING, **{**NOT_WAITING, "pending_since": ended}, progress=None)
    ctx.draft.event("Requeued", f"{ctx.key}: back in the queue", ctx.key)
    _waits(_reread(ctx))


def _runs(ctx: AttemptContext) -> None:
    """It runs: records since when and how far, and stops it where it may not go on."""
    draft, job = ctx.draft, ctx.job
    assert job is not None
    if ctx.record.state is AttemptState.PENDING:
        started = draft.within(ctx.record, job.started)
        record = draft.change(
            ctx.key,
            state=AttemptState.RUNNING,
            start_time=ctx.record.start_time or started,
            running_since=started,
            **NOT_WAITING,
            reason="",
            message="",
        )
        resumes = record.checkpoint_step >= 0 and not record.collect
        since = f", from step {record.checkpoint_step}" if resumes else ""
        draft.event("Started", f"{ctx.key}: attempt {record.attempt} is running{since}", ctx.key)
    if job.waiting is not draft.records[ctx.key].waiting and job.waiting is not None:
        draft.event(job.waiting, f"{ctx.key}: {job.waiting_message}", ctx.key, warning=job.waiting.stalls)
    draft.change(ctx.key, reason=job.waiting or "", message=cut(job.waiting_message))
    if job.progress is not None:
        draft.change(ctx.key, progress=_shortened(job.progress))
    for reason, why in ((StopReason.SIDECAR, job.stuck), (StopReason.NODE_LOST, job.lost)):
        if why:
            stop(draft, ctx.key, reason, why)
            return
    limit = ctx.spec.stage(ctx.key.name).timeout_seconds
    if limit is not None:
        record = draft.records[ctx.key]
        left = limit - record.attempt_seconds - seconds_between(record.running_since, draft.now)
        if left <= 0:
            stop(draft, ctx.key, StopReason.TIMEOUT, f"ran longer than timeoutSeconds ({limit})")
        else:
            draft.wake_in(left)


def _succeeded(ctx: AttemptContext) -> None:
    """Records the result; without one, only an attempt that reads the manifest can find it."""
    draft, record, job = ctx.draft, ctx.record, ctx.job
    assert job is not None
    result = job.result
    if result is None or not result.output_digest:
        _unreadable(ctx)
        return
    _book(ctx, job)
    draft.change(
        ctx.key,
        state=AttemptState.SUCCEEDED,
        completion_time=draft.within(ctx.record, job.finished),
        input_hash=result.input_hash or record.input_hash,
        output_digest=result.output_digest,
        promoted=result.promoted,
        reused=result.reused,
        **NOT_WAITING,
        retry_after=None,
        progress=None,
        reason=cut(result.reason, 64),
        message=cut(result.message),
    )
    draft.count(reused_stages=int(result.reused))
    if definition(ctx.key.name).measures:
        others = tuple(score for score in draft.scores if score.iteration != ctx.key.iteration)
        draft.scores = tuple(sorted((*others, *scores_in(ctx.key.iteration, result)), key=lambda s: s.iteration))
    decided = f"; {cut(result.message)}" if result.message else ""
    draft.event("Reused" if result.reused else "Succeeded", f"{ctx.key}: {result.output_digest[:12]}{decided}", ctx.key)


def _unreadable(ctx: AttemptContext) -> None:
    """It succeeded, but its pod was gone before its result was read. Only a collecting attempt counts as lost."""
    if ctx.record.collect:
        _lost(ctx, "the result of the collecting attempt could not be read")
        return
    draft, job = ctx.draft, ctx.job
    assert job is not None
    _book(ctx, job)
    draft.change(
        ctx.key,
        state=AttemptState.GONE,
        collect=True,
        completion_time=draft.within(ctx.record, job.finished),
        **NOT_WAITING,
        progress=None,
        reason="ResultUnreadable",
        message="succeeded, but its result could not be read; its manifest on the volume is read instead",
    )
    draft.event("ResultUnreadable", f"{ctx.key}: reading its manifest instead", ctx.key, warning=True)


def _failed(ctx: AttemptContext) -> None:
    """The Job failed: `failure_policy` says what that means."""
    job = ctx.job
    assert job is not None
    code = job.exit_code if job.exit_code is not None else (job.result.exit_code if job.result else None)
    stopped = ctx.record.reason if ctx.record.state is AttemptState.TERMINATING else ""
    progressed = _checkpoint(job.result) > ctx.record.checkpoint_step
    reported = job.reason or (job.result.reason if job.result else "")
    failure_class = classify(AttemptEnd(code, reported, stopped, progressed))
    stage_message = job.result.message if job.result else ""
    exit_name = "PodGone" if code is None else f"ExitCode{code}"
    reason = stopped or reported or exit_name
    message = stage_message or job.message or (ctx.record.message if stopped else "")
    _end(ctx, AttemptState.GONE if stopped else AttemptState.FAILED, failure_class, reason, message)


def _gone(ctx: AttemptContext) -> None:
    """What was asked to stop is gone."""
    failure_class = classify(AttemptEnd(stop=ctx.record.reason, reason=ctx.record.reason))
    _end(ctx, AttemptState.GONE, failure_class, ctx.record.reason, ctx.record.message)


def _lost(ctx: AttemptContext, message: str) -> None:
    _end(ctx, AttemptState.GONE, classify(AttemptEnd(reason=StopReason.VANISHED)), StopReason.VANISHED, message)


def _end(ctx: AttemptContext, state: AttemptState, failure_class: FailureClass, reason: str, message: str) -> None:
    """An attempt ended without success: books it, counts it, and decides whether and when there is another."""
    draft, policy = ctx.draft, ctx.spec.failure_policy
    ran = _book(ctx, ctx.job)
    retries = ctx.record.retries + (failure_class is FailureClass.APPLICATION)
    restarts = ctx.record.infra_restarts + (failure_class is FailureClass.INFRASTRUCTURE)
    losses, given_up = {
        FailureClass.PERMANENT: (0, True),
        FailureClass.APPLICATION: (retries, retries > policy.max_retries),
        FailureClass.CHECKPOINTED: (0, False),
        FailureClass.INFRASTRUCTURE: (restarts, restarts > policy.max_infra_restarts),
    }[failure_class]
    record = draft.change(
        ctx.key,
        state=state,
        completion_time=draft.within(ctx.record, ctx.job.finished if ctx.job else None),
        **NOT_WAITING,
        progress=None,
        retries=retries,
        infra_restarts=restarts,
        # a collecting attempt that finds no manifest: nothing was published after all, so the stage has to run
        collect=ctx.record.collect and failure_class is not FailureClass.APPLICATION,
        checkpoint_step=max(ctx.record.checkpoint_step, _checkpoint(ctx.job.result if ctx.job else None)),
        given_up=given_up,
        retry_after=draft.after(backoff_seconds(policy, losses, ran)) if losses and not given_up else None,
        reason=cut(reason, 64),
        message=cut(message),
    )
    draft.count(app_retries=retries - ctx.record.retries, infra_restarts=restarts - ctx.record.infra_restarts)
    if failure_class is not FailureClass.CHECKPOINTED:
        draft.count(wasted_gpu_seconds=record.gpus * ran)
    follows = "given up" if given_up else "will be retried"
    draft.event(
        record.reason,
        f"{ctx.key}: attempt {record.attempt} ended ({failure_class}), {follows}",
        ctx.key,
        warning=given_up,
    )


def _book(ctx: AttemptContext, job: ObservedJob | None) -> float:
    """Time and money of an attempt that ended; returns its seconds."""
    draft, record = ctx.draft, ctx.record
    if record.state is AttemptState.PENDING and job is not None and job.started is not None:
        # it ran and ended between two reconciles
        started = draft.within(record, job.started)
        draft.change(ctx.key, running_since=started, start_time=record.start_time or started)
    ran = draft.end_run(ctx.key, draft.within(draft.records[ctx.key], job.finished if job else None))
    # an attempt that failed may leave no account; then its last progress is the best there is
    reports = (job.result.usage if job and job.result else {}, record.progress.metrics if record.progress else {})
    # the stage reports what all its attempts have paid: only what is new is added
    paid = max(record.generator_usd, *(figures.get("generatorUSD", 0.0) for figures in reports))
    draft.count(generator_usd=paid - record.generator_usd)
    draft.change(ctx.key, generator_usd=paid)
    return ran


def _checkpoint(result: StageResult | None) -> int:
    return result.checkpoint_step if result is not None else -1


def _shortened(progress: Progress) -> Progress:
    """Progress that fits into the status; what the attempt has spent stays in."""
    if len(progress.metrics) <= _PROGRESS_METRICS and len(progress.phase) <= 64:
        return progress
    spent = {name: value for name, value in progress.metrics.items() if name == "generatorUSD"}
    kept = dict(list(progress.metrics.items())[:_PROGRESS_METRICS])
    return progress.model_copy(update={"phase": cut(progress.phase, 64), "metrics": kept | spent})


def _reread(ctx: AttemptContext) -> AttemptContext:
    return replace(ctx, record=ctx.draft.records[ctx.key])


_TRANSITIONS: dict[tuple[AttemptState, AttemptSight], Callable[[AttemptContext], None]] = {
    (AttemptState.PENDING, AttemptSight.ABSENT): _absent,
    (AttemptState.PENDING, AttemptSight.LINGERING): _lingers,
    (AttemptState.PENDING, AttemptSight.QUEUED): _waits,
    (AttemptState.PENDING, AttemptSight.RUNNING): _runs,
    (AttemptState.PENDING, AttemptSight.SUCCEEDED): _succeeded,
    (AttemptState.PENDING, AttemptSight.FAILED): _failed,
    (AttemptState.RUNNING, AttemptSight.ABSENT): _absent,
    (AttemptState.RUNNING, AttemptSight.LINGERING): _lingers,
    (AttemptState.RUNNING, AttemptSight.QUEUED): _requeued,
    (AttemptState.RUNNING, AttemptSight.RUNNING): _runs,
    (AttemptState.RUNNING, AttemptSight.SUCCEEDED): _succeeded,
    (AttemptState.RUNNING, AttemptSight.FAILED): _failed,
    (AttemptState.TERMINATING, AttemptSight.ABSENT): _gone,
    (AttemptState.TERMINATING, AttemptSight.LINGERING): _stay,
    (AttemptState.TERMINATING, AttemptSight.QUEUED): _stay,
    (AttemptState.TERMINATING, AttemptSight.RUNNING): _stay,
    (AttemptState.TERMINATING, AttemptSight.SUCCEEDED): _succeeded,
    (AttemptState.TERMINATING, AttemptSight.FAILED): _failed,
}
