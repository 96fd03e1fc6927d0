"""The planner: from a cycle and what is seen of it to what to do now. Pure: no I/O, no clock, no randomness."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from medgr2_api.cycle import Cycle
from medgr2_api.status import AttemptState, CycleStatus, Phase

from . import budget
from .attempt_transitions import follow, stop
from .conditions import conditions, models, phase, summary
from .cycle_state import Standing, decide, iterations, newest_iteration
from .graph import Graph
from .observation_index import ENDED, View
from .restart import restart
from .scheduling import Starts, start
from .scores import best
from .spec_cache import resolved
from .status_compaction import compact
from .status_draft import ACTIVE, Ledger, attempt_of, stage_of
from .types import JobDelete, Observed, ObservedJob, Plan


def plan(cycle: Cycle, observed: Observed, now: datetime) -> Plan:
    """What to do now.

    Level-triggered: the same cycle, observation and time give the same plan, and applying any part of a plan leaves
    a state from which the next call computes the rest.

    Args:
        cycle: the object as last read, with its status.
        observed: its Jobs and live pods as last seen.
        now: the time, with its zone.

    Returns:
        The new status, then what to delete, create and tell, in this order.
    """
    known = resolved(cycle.metadata.name, cycle.spec)
    ledger, view = Ledger.open(cycle.status, now), View(observed)

    follow(ledger, view, cycle.spec)
    if cycle.metadata.deletion_timestamp is not None:
        return _answer(ledger, _recorded(cycle, ledger))

    graph = known.graph(iterations(cycle, ledger))
    tokens, restarted = restart(ledger, cycle.spec, graph, list(cycle.status.restart_tokens))
    if _ended(cycle) and not restarted:
        status = _recorded(cycle, ledger, restart_tokens=tokens, observed_generation=cycle.metadata.generation)
        return _answer(ledger, status, _deletes(ledger, view))

    graph = known.graph(iterations(cycle, ledger))  # a restart may have taken back what stopped the loop early
    standing, starts = decide(cycle, graph, ledger, observed), Starts()
    obstacle = standing.failing or standing.held
    if obstacle is not None:
        for record in ledger.active():
            stop(ledger, stage_of(record), obstacle.stop, obstacle.reason)
    elif not standing.finished and standing.workspace is None:
        starts = start(cycle, known, graph, ledger, view)

    status = _status(cycle, graph, ledger, standing, starts, tokens)
    return _answer(ledger, status, _deletes(ledger, view), starts)


def _ended(cycle: Cycle) -> bool:
    """Complete or Failed, and no iterations were added since. An end is final: other edits do not take it back."""
    ended = cycle.status.completion_time is not None
    return ended and cycle.spec.iterations <= cycle.status.finished_iterations


def _deletes(ledger: Ledger, view: View) -> tuple[JobDelete, ...]:
    """Attempts to stop, and Jobs of attempts that a newer one has followed; the newest one's stays, for its logs."""
    found = ((job, _why_delete(job, ledger, view)) for job in view.jobs.values() if not job.deleting)
    return tuple(JobDelete(job.key, job.name, job.uid, reason) for job, reason in found if reason)


def _why_delete(job: ObservedJob, ledger: Ledger, view: View) -> str:
    record, stored = ledger.get(job.key.stage), ledger.before.get(job.key.stage)
    ended = job.state in ENDED
    if record is not None and view.job(record) is job:
        if record.state is AttemptState.TERMINATING:
            return "" if ended else record.reason
        # an end is for ever: what is seen alive after it has no one who would read its result
        return "Superseded" if record.state not in ACTIVE and not ended else ""
    if not ended:
        return "Superseded"
    # its result goes with it, so the status that knows the next attempt has to be stored first
    return "Superseded" if stored is not None and attempt_of(stored) != job.key else ""


def _status(
    cycle: Cycle, graph: Graph, ledger: Ledger, standing: Standing, starts: Starts, tokens: list[str]
) -> CycleStatus:
    """Everything that is remembered and told."""
    before = cycle.status
    clock_stands = standing.held is not None or standing.finished
    word, iteration = phase(standing, starts, ledger), newest_iteration(ledger)
    if word is not before.phase:
        why = standing.complete or standing.failing or standing.held
        ledger.event(str(word), why.message if why else f"was {before.phase}", warning=word is Phase.FAILED)
    return _recorded(
        cycle,
        ledger,
        observed_generation=cycle.metadata.generation,
        phase=word,
        conditions=conditions(cycle, standing, starts, ledger),
        iteration=iteration,
        summary=summary(word, ledger, iteration, cycle.spec.iterations),
        models=models(graph, ledger),
        start_time=before.start_time or ledger.now,
        completion_time=ledger.now if standing.finished else None,
        finished_iterations=cycle.spec.iterations if standing.finished else 0,
        active_seconds=budget.active_seconds(before, ledger) if clock_stands else before.active_seconds,
        active_since=None if clock_stands else before.active_since or ledger.now,
        restart_tokens=tokens,
    )


def _recorded(cycle: Cycle, ledger: Ledger, **changes: Any) -> CycleStatus:
    """The status with the ledger's records, usage and scores in it."""
    scores = list(ledger.scores)
    stages = list(ledger.records.values())
    told = {"stages": stages, "usage": ledger.usage, "scores": scores, "best": best(scores), **changes}
    return compact(cycle.status.model_copy(update=told))


def _answer(
    ledger: Ledger, status: CycleStatus, deletes: tuple[JobDelete, ...] = (), starts: Starts | None = None
) -> Plan:
    return Plan(
        status=status,
        deletes=deletes,
        creates=tuple(starts.creates) if starts is not None else (),
        events=tuple(ledger.events),
        requeue_after=ledger.wake,
    )
