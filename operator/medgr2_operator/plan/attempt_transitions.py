"""What becomes of an attempt: a table from (where it was, what is seen) to what follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from medgr2_api.cycle import CycleSpec
from medgr2_api.stage_contract import Progress, StageResult
from medgr2_api.stages import definition
from medgr2_api.status import AttemptState, StageStatus

from .failure_policy import Ending, FailureClass, Stop, backoff_seconds, classify
from .observation_index import UNKNOWN_UID, Sight, View
from .scores import scores_in
from .status_draft import Ledger, cut, seconds_between, stage_of
from .types import ObservedJob, StageKey

_PROGRESS_METRICS = 8


@dataclass(frozen=True)
class Look:
    """One look at one unfinished attempt."""

    ledger: Ledger
    spec: CycleSpec
    key: StageKey
    record: StageStatus
    job: ObservedJob | None


def follow(ledger: Ledger, view: View, spec: CycleSpec) -> None:
    """Brings every unfinished attempt up to what is seen of it."""
    for record in ledger.active():
        key, sight, job = stage_of(record), view.sight(record), view.job(record)
        if job is not None:
            record = ledger.change(key, job_uid=job.uid)
        _NEXT[record.state, sight](Look(ledger, spec, key, record, job))


def stop(ledger: Ledger, key: StageKey, reason: Stop, message: str = "") -> None:
    """Ends an attempt. The Job is deleted by this plan; the attempt ends when nothing of it is left."""
    if ledger.records[key].state is not AttemptState.TERMINATING:
        ledger.change(key, state=AttemptState.TERMINATING, pending_since=None, reason=reason, message=cut(message))
        ledger.event(str(reason), f"{key}: stopping" + (f": {message}" if message else ""), key)


def _stay(look: Look) -> None:
    """Nothing new."""


def _absent(look: Look) -> None:
    """Never seen: not created yet, and `start` creates it under the same identity. Seen before: it vanished."""
    if look.record.job_uid:
        _lost(look, "its Job vanished")


def _lingers(look: Look) -> None:
    """The Job is gone, its pods are not: whatever they still publish counts, so the attempt ends when they do."""
    if not look.record.job_uid:
        look.ledger.change(look.key, job_uid=UNKNOWN_UID)
    stop(look.ledger, look.key, Stop.VANISHED, "its Job vanished, a pod is still alive")


def _waits(look: Look) -> None:
    """Not scheduled. The cause goes into the record; after the deadline the stage fails with it."""
    assert look.job is not None
    cause = ": ".join(part for part in (look.job.pending_reason, look.job.pending_message) if part)
    record = look.ledger.change(
        look.key,
        pending_since=look.record.pending_since or look.ledger.now,
        reason=cut(look.job.pending_reason, 64),
        message=cut(look.job.pending_message),
    )
    deadline = look.spec.stage(look.key.name).pending_deadline_seconds or look.spec.pending_deadline_seconds
    left = deadline - seconds_between(record.pending_since, look.ledger.now)
    if look.job.stuck:
        stop(look.ledger, look.key, Stop.SIDECAR, look.job.stuck)
    elif left <= 0:
        stop(look.ledger, look.key, Stop.PENDING_DEADLINE, f"not scheduled in {deadline} s: {cause or 'cause unknown'}")
    else:
        look.ledger.wake_in(left)


def _requeued(look: Look) -> None:
    """A queue took its quota back: the attempt waits again, and its clock stands still."""
    look.ledger.end_stretch(look.key)
    look.ledger.change(look.key, state=AttemptState.PENDING, pending_since=look.ledger.now, progress=None)
    look.ledger.event("Requeued", f"{look.key}: back in the queue", look.key)
    _waits(_again(look))


def _runs(look: Look) -> None:
    """It runs: note since when, how far it is, and whether it may go on."""
    ledger, job = look.ledger, look.job
    assert job is not None
    if look.record.state is AttemptState.PENDING:
        started = min(job.started or ledger.now, ledger.now)
        record = ledger.change(
            look.key,
            state=AttemptState.RUNNING,
            start_time=look.record.start_time or started,
            running_since=started,
            pending_since=None,
            reason="",
            message="",
        )
        resumes = record.checkpoint_step >= 0 and not record.collect
        since = f", from step {record.checkpoint_step}" if resumes else ""
        ledger.event("Started", f"{look.key}: attempt {record.attempt} runs{since}", look.key)
    if job.progress is not None:
        ledger.change(look.key, progress=_shortened(job.progress))
    for reason, why in ((Stop.SIDECAR, job.stuck), (Stop.NODE_LOST, job.lost)):
        if why:
            stop(ledger, look.key, reason, why)
            return
    limit = look.spec.stage(look.key.name).timeout_seconds
    if limit is not None:
        record = ledger.records[look.key]
        left = limit - record.attempt_seconds - seconds_between(record.running_since, ledger.now)
        if left <= 0:
            stop(ledger, look.key, Stop.TIMEOUT, f"ran longer than timeoutSeconds ({limit})")
        else:
            ledger.wake_in(left)


def _succeeded(look: Look) -> None:
    """Record the result; without one, only an attempt that reads the manifest can tell it."""
    ledger, record, job = look.ledger, look.record, look.job
    assert job is not None
    result = job.result
    if result is None or not result.output_digest:
        _unreadable(look)
        return
    _book(look, job)
    ledger.change(
        look.key,
        state=AttemptState.SUCCEEDED,
        completion_time=job.finished or ledger.now,
        input_hash=result.input_hash or record.input_hash,
        output_digest=result.output_digest,
        promoted=result.promoted,
        reused=result.reused,
        pending_since=None,
        retry_after=None,
        progress=None,
        reason=cut(result.reason, 64),
        message=cut(result.message),
    )
    ledger.count(reused_stages=int(result.reused))
    if definition(look.key.name).measures:
        others = tuple(score for score in ledger.scores if score.iteration != look.key.iteration)
        ledger.scores = tuple(sorted((*others, *scores_in(look.key.iteration, result)), key=lambda s: s.iteration))
    ledger.event("Reused" if result.reused else "Succeeded", f"{look.key}: {result.output_digest[:12]}", look.key)


def _unreadable(look: Look) -> None:
    """It succeeded, but its pod was gone before its result was read. Only a collecting attempt counts as lost."""
    if look.record.collect:
        _lost(look, "the result of the collecting attempt could not be read")
        return
    ledger, job = look.ledger, look.job
    assert job is not None
    _book(look, job)
    ledger.change(
        look.key,
        state=AttemptState.GONE,
        collect=True,
        completion_time=job.finished or ledger.now,
        pending_since=None,
        progress=None,
        reason="ResultUnreadable",
        message="succeeded, but its result could not be read; the manifest on the volume will tell it",
    )
    ledger.event("ResultUnreadable", f"{look.key}: reading its manifest instead", look.key, warning=True)


def _failed(look: Look) -> None:
    """The Job failed: what that means is the table's business."""
    job = look.job
    assert job is not None
    code = job.exit_code if job.exit_code is not None else (job.result.exit_code if job.result else None)
    stopped = look.record.reason if look.record.state is AttemptState.TERMINATING else ""
    progressed = _checkpoint(job.result) > look.record.checkpoint_step
    word = job.reason or (job.result.reason if job.result else "")
    verdict = classify(Ending(code, word, stopped, progressed))
    said = job.result.message if job.result else ""
    unsaid = "PodGone" if code is None else f"ExitCode{code}"
    reason = stopped or word or unsaid
    message = said or job.message or (look.record.message if stopped else "")
    _end(look, AttemptState.GONE if stopped else AttemptState.FAILED, verdict, reason, message)


def _gone(look: Look) -> None:
    """What was asked to stop is no more."""
    verdict = classify(Ending(stop=look.record.reason, reason=look.record.reason))
    _end(look, AttemptState.GONE, verdict, look.record.reason, look.record.message)


def _lost(look: Look, message: str) -> None:
    _end(look, AttemptState.GONE, classify(Ending(reason=Stop.VANISHED)), Stop.VANISHED, message)


def _end(look: Look, state: AttemptState, verdict: FailureClass, reason: str, message: str) -> None:
    """An attempt ended otherwise than well: book it, count it, and say whether and when there is another."""
    ledger, policy = look.ledger, look.spec.failure_policy
    ran = _book(look, look.job)
    retries = look.record.retries + (verdict is FailureClass.APPLICATION)
    restarts = look.record.infra_restarts + (verdict is FailureClass.INFRASTRUCTURE)
    losses, given_up = {
        FailureClass.PERMANENT: (0, True),
        FailureClass.APPLICATION: (retries, retries > policy.max_retries),
        FailureClass.CHECKPOINTED: (0, False),
        FailureClass.INFRASTRUCTURE: (restarts, restarts > policy.max_infra_restarts),
    }[verdict]
    record = ledger.change(
        look.key,
        state=state,
        completion_time=(look.job.finished if look.job else None) or ledger.now,
        pending_since=None,
        progress=None,
        retries=retries,
        infra_restarts=restarts,
        # a collecting attempt that finds no manifest: nothing was published after all, so the stage has to run
        collect=look.record.collect and verdict is not FailureClass.APPLICATION,
        checkpoint_step=max(look.record.checkpoint_step, _checkpoint(look.job.result if look.job else None)),
        given_up=given_up,
        retry_after=ledger.after(backoff_seconds(policy, losses, ran)) if losses and not given_up else None,
        reason=cut(reason, 64),
        message=cut(message),
    )
    ledger.count(app_retries=retries - look.record.retries, infra_restarts=restarts - look.record.infra_restarts)
    if verdict is not FailureClass.CHECKPOINTED:
        ledger.count(wasted_gpu_seconds=record.gpus * ran)
    follows = "given up" if given_up else "will start again"
    ledger.event(
        record.reason, f"{look.key}: attempt {record.attempt} ended ({verdict}), {follows}", look.key, warning=given_up
    )


def _book(look: Look, job: ObservedJob | None) -> float:
    """Time and money of an attempt that ended; returns its seconds."""
    ledger, record = look.ledger, look.record
    if record.state is AttemptState.PENDING and job is not None and job.started is not None:
        # it ran and ended between two looks
        ledger.change(look.key, running_since=job.started, start_time=record.start_time or job.started)
    ran = ledger.end_stretch(look.key, job.finished if job else None)
    # an attempt that failed may leave no account; then what it last said of itself is the best there is
    told = (job.result.usage if job and job.result else {}, record.progress.metrics if record.progress else {})
    # the stage tells what all its attempts have paid: only what is new is added
    paid = max(record.generator_usd, *(figures.get("generatorUSD", 0.0) for figures in told))
    ledger.count(generator_usd=paid - record.generator_usd)
    ledger.change(look.key, generator_usd=paid)
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


def _again(look: Look) -> Look:
    return Look(look.ledger, look.spec, look.key, look.ledger.records[look.key], look.job)


_NEXT: dict[tuple[AttemptState, Sight], Callable[[Look], None]] = {
    (AttemptState.PENDING, Sight.ABSENT): _absent,
    (AttemptState.PENDING, Sight.LINGERING): _lingers,
    (AttemptState.PENDING, Sight.QUEUED): _waits,
    (AttemptState.PENDING, Sight.RUNNING): _runs,
    (AttemptState.PENDING, Sight.SUCCEEDED): _succeeded,
    (AttemptState.PENDING, Sight.FAILED): _failed,
    (AttemptState.RUNNING, Sight.ABSENT): _absent,
    (AttemptState.RUNNING, Sight.LINGERING): _lingers,
    (AttemptState.RUNNING, Sight.QUEUED): _requeued,
    (AttemptState.RUNNING, Sight.RUNNING): _runs,
    (AttemptState.RUNNING, Sight.SUCCEEDED): _succeeded,
    (AttemptState.RUNNING, Sight.FAILED): _failed,
    (AttemptState.TERMINATING, Sight.ABSENT): _gone,
    (AttemptState.TERMINATING, Sight.LINGERING): _stay,
    (AttemptState.TERMINATING, Sight.QUEUED): _stay,
    (AttemptState.TERMINATING, Sight.RUNNING): _stay,
    (AttemptState.TERMINATING, Sight.SUCCEEDED): _succeeded,
    (AttemptState.TERMINATING, Sight.FAILED): _failed,
}
