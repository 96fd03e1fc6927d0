"""The planner: from a cycle and what is observed of it to what to do now. Pure: no I/O, no clock, no randomness."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from medgr2_api.cycle import Cycle
from medgr2_api.status import AttemptState, Condition, CycleStatus, Phase
from medgr2_api.waiting import WaitingReason

from . import budget
from .attempt_transitions import advance_attempts, stop
from .conditions import conditions, models, phase, spec_applied, summary
from .cycle_state import CycleState, decide, ended_state, iterations, newest_iteration
from .graph import Graph
from .observation_index import ENDED, ObservationIndex
from .restart import restart
from .scheduling import Starts, start
from .scores import best
from .spec_cache import cached_spec
from .spec_edits import spec_edits
from .status_compaction import compact
from .status_draft import ACTIVE, StatusDraft, attempt_of, stage_of
from .types import JobDelete, Observed, ObservedJob, Plan
from .waits import is_held, mark_approvals


def plan(cycle: Cycle, observed: Observed, now: datetime) -> Plan:
    """What to do now.

    Level-triggered: the same cycle, observation and time give the same plan, and applying any part of a plan leaves
    a state from which the next call computes the rest.

    Args:
        cycle: the object as last read, with its status.
        observed: its Jobs and live pods as last seen.
        now: the time, with its zone.

    Returns:
        The new status, then what to delete, to create and to report, in this order.
    """
    cached = cached_spec(cycle.metadata.name, cycle.spec)
    draft, index = StatusDraft.open(cycle.status, now), ObservationIndex(observed)

    advance_attempts(draft, index, cycle.spec)
    if cycle.metadata.deletion_timestamp is not None:
        return _answer(draft, _recorded(cycle, draft))

    graph = cached.graph(iterations(cycle, draft))
    tokens, restarted = restart(draft, cycle.spec, graph, list(cycle.status.restart_tokens))
    if _ended(cycle) and not restarted:
        edits = spec_edits(cycle, cached, graph, draft, complete=cycle.status.phase is Phase.COMPLETE)
        status = _ended_status(cycle, draft, tokens, spec_applied(cycle, edits, draft))
        return _answer(draft, status, _deletes(draft, index))

    graph = cached.graph(iterations(cycle, draft))  # a restart may have taken back what stopped the loop early
    state, starts = decide(cycle, graph, draft, observed), Starts()
    mark_approvals(cycle, graph, draft, under_way=not (state.complete or state.failing))
    obstacle = state.failing or state.suspended
    if obstacle is not None:
        for record in draft.active():
            stop(draft, stage_of(record), obstacle.stop, obstacle.reason)
    elif not state.finished and state.workspace is None:
        starts = start(cycle, cached, graph, draft, index)

    edits = spec_edits(cycle, cached, graph, draft, complete=state.complete is not None)
    status = _status(cycle, graph, draft, state, starts, tokens, spec_applied(cycle, edits, draft))
    return _answer(draft, status, _deletes(draft, index), starts)


def _ended(cycle: Cycle) -> bool:
    """Complete or Failed, and no iterations were added since. An end is final: other edits do not take it back."""
    ended = cycle.status.completion_time is not None
    return ended and cycle.spec.iterations <= cycle.status.finished_iterations


def _ended_status(cycle: Cycle, draft: StatusDraft, tokens: list[str], applied: Condition) -> CycleStatus:
    """An end stays as it is, and is told of the spec of now: who waits for this generation is answered."""
    state, starts = ended_state(cycle.status), Starts()
    return _recorded(
        cycle,
        draft,
        restart_tokens=tokens,
        observed_generation=cycle.metadata.generation,
        phase=phase(state, starts, draft),
        conditions=[*conditions(cycle, state, starts, draft), applied],
    )


def _deletes(draft: StatusDraft, index: ObservationIndex) -> tuple[JobDelete, ...]:
    """Attempts to stop, and Jobs of attempts that a newer one has followed; the newest one's stays, for its logs."""
    reasons = ((job, _why_delete(job, draft, index)) for job in index.jobs.values() if not job.deleting)
    return tuple(JobDelete(job.key, job.name, job.uid, reason) for job, reason in reasons if reason)


def _why_delete(job: ObservedJob, draft: StatusDraft, index: ObservationIndex) -> str:
    record, stored = draft.get(job.key.stage), draft.before.get(job.key.stage)
    ended = job.state in ENDED and not job.left_over
    if record is not None and index.job(record) is job:
        if record.state is AttemptState.TERMINATING:
            return "" if ended else record.reason
        # an end is final: nobody would read the result of what is still alive
        why = str(WaitingReason.SIDECAR_STILL_RUNS) if job.left_over else "Superseded"
        return why if record.state not in ACTIVE and not ended else ""
    if not ended:
        return "Superseded"
    # its result goes with it, so the status that knows the next attempt has to be stored first
    return "Superseded" if stored is not None and attempt_of(stored) != job.key else ""


def _status(
    cycle: Cycle,
    graph: Graph,
    draft: StatusDraft,
    state: CycleState,
    starts: Starts,
    tokens: list[str],
    applied: Condition,
) -> CycleStatus:
    """The new status."""
    before = cycle.status
    clock_stopped = state.suspended is not None or state.finished or _waits_for_others(draft, starts)
    new_phase, iteration = phase(state, starts, draft), newest_iteration(draft)
    if new_phase is not before.phase and {new_phase, before.phase} != {Phase.RUNNING, Phase.WAITING}:  # stages say that
        why = state.complete or state.failing or state.suspended
        draft.event(str(new_phase), why.message if why else f"was {before.phase}", warning=new_phase is Phase.FAILED)
    return _recorded(
        cycle,
        draft,
        observed_generation=cycle.metadata.generation,
        phase=new_phase,
        conditions=[*conditions(cycle, state, starts, draft), applied],
        iteration=iteration,
        summary=summary(new_phase, draft, iteration, cycle.spec.iterations),
        models=models(graph, draft),
        start_time=before.start_time or draft.now,
        completion_time=draft.now if state.finished else None,
        finished_iterations=cycle.spec.iterations if state.finished else 0,
        active_seconds=budget.active_seconds(before, draft) if clock_stopped else before.active_seconds,
        active_since=None if clock_stopped else before.active_since or draft.now,
        restart_tokens=tokens,
    )


def _waits_for_others(draft: StatusDraft, starts: Starts) -> bool:
    """Whether all that is left to do now is a queue's or a person's."""
    active = list(draft.active())
    return bool(active or starts.paused) and not starts.backing_off and all(map(is_held, active))


def _recorded(cycle: Cycle, draft: StatusDraft, **changes: Any) -> CycleStatus:
    """The status with the draft's records, usage and scores in it."""
    scores = list(draft.scores)
    stages = list(draft.records.values())
    fields = {"stages": stages, "specs": draft.specs, "usage": draft.usage, "scores": scores, "best": best(scores)}
    return compact(cycle.status.model_copy(update={**fields, **changes}))


def _answer(
    draft: StatusDraft, status: CycleStatus, deletes: tuple[JobDelete, ...] = (), starts: Starts | None = None
) -> Plan:
    return Plan(
        status=status,
        deletes=deletes,
        creates=tuple(starts.creates) if starts is not None else (),
        events=tuple(draft.events),
        requeue_after=draft.wake,
    )
