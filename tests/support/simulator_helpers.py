"""Brings a simulator to a certain point, for tests that look at one rule."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from medgr2_api.scheduling import RestartFrom
from medgr2_api.stage_contract import StageResult
from medgr2_api.status import AttemptState, Condition, StageStatus
from medgr2_operator.plan.types import JobState, Plan
from tests.support import simulator_events
from tests.support.cycle_specs import make_spec
from tests.support.planner_objects import ENDED, SimJob
from tests.support.planner_simulator import PlannerSimulator

#: What a stage of four GPUs has in the spec.
GPU = {"resources": {"limits": {"nvidia.com/gpu": 4}}}


def make_simulator(**changes: Any) -> PlannerSimulator:
    """A simulator with one iteration, and changes of the spec."""
    return PlannerSimulator(make_spec(**{"iterations": 1, **changes}))


def reconcile(w: PlannerSimulator, times: int = 1) -> Plan:
    """Planner rounds; the last plan."""
    for _ in range(times):
        made = w.reconcile()
    return made


def job(w: PlannerSimulator, name: str, iteration: int = 1) -> SimJob:
    """The newest Job of a stage."""
    found = [j for j in w.jobs.values() if j.key.name == name and j.key.iteration == iteration]
    return max(found, key=lambda j: int(j.uid.rsplit("-", 1)[1]))


def record(w: PlannerSimulator, name: str, iteration: int = 1) -> StageStatus:
    """A stage's record in the stored status."""
    return next(r for r in w.status.stages if r.name == name and r.iteration == iteration)


def condition(w: PlannerSimulator, kind: str) -> Condition:
    """A condition of the stored status."""
    return next(c for c in w.status.conditions if c.type == kind)


def run(w: PlannerSimulator, found: SimJob) -> SimJob:
    """Lets a queued Job run, and the planner see it."""
    simulator_events.admit(
        w, [j for j in w.jobs.values() if j.state is JobState.QUEUED and not j.deleting].index(found), 0
    )
    w.reconcile()
    return found


def succeed(w: PlannerSimulator, found: SimJob, *, readable: bool = True, **result: Any) -> None:
    """A Job succeeds."""
    told = w.publish(found).model_copy(update=result)
    found.started = found.started or w.now
    w.finish(found, 0, "", told if readable else None)
    w.release(found, linger=False)


def fail(w: PlannerSimulator, found: SimJob, code: int | None, reason: str = "", **result: Any) -> None:
    """A Job fails."""
    told = StageResult(exit_code=code, **result) if code is not None else None
    w.finish(found, code, reason, told)
    w.release(found, linger=False)


def until(w: PlannerSimulator, name: str, iteration: int = 1) -> SimJob:
    """Everything else succeeds until this stage's Job exists."""
    for _ in range(60):
        w.reconcile()
        for found in list(w.jobs.values()):
            if found.key.name == name and found.key.iteration == iteration:
                if found.state not in ENDED:
                    return found
            elif found.state not in ENDED and not found.deleting:
                succeed(w, found)
    raise AssertionError(f"{name}@{iteration} never started: {w.status.conditions}")


def finish(w: PlannerSimulator) -> None:
    """Everything succeeds until the cycle has ended."""
    for _ in range(300):
        w.reconcile()
        if w.status.completion_time is not None:
            return
        for found in list(w.jobs.values()):
            if found.state not in ENDED and not found.deleting:
                succeed(w, found)
    raise AssertionError(f"did not finish: {w.status.conditions}")


def wait(w: PlannerSimulator, seconds: float) -> None:
    """Time passes."""
    w.now += timedelta(seconds=seconds)


def live(w: PlannerSimulator) -> set[str]:
    """Stages with an attempt that has not ended."""
    active = (AttemptState.PENDING, AttemptState.RUNNING, AttemptState.TERMINATING)
    return {f"{r.name}@{r.iteration}" for r in w.status.stages if r.attempt and r.state in active}


def edit(w: PlannerSimulator, **changes: Any) -> None:
    """Somebody edits the spec."""
    w.set_spec(changes)


def restart(w: PlannerSimulator, stage: str, iteration: int, token: str) -> None:
    """Somebody wants a stage again."""
    edit(w, restart_from=RestartFrom(iteration=iteration, stage=stage, token=token))
