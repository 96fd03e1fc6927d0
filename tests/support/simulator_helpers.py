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


def reconcile(sim: PlannerSimulator, times: int = 1) -> Plan:
    """Planner rounds; the last plan."""
    for _ in range(times):
        plan = sim.reconcile()
    return plan


def job(sim: PlannerSimulator, name: str, iteration: int = 1) -> SimJob:
    """The newest Job of a stage."""
    jobs = [j for j in sim.jobs.values() if j.key.name == name and j.key.iteration == iteration]
    return max(jobs, key=lambda j: int(j.uid.rsplit("-", 1)[1]))


def record(sim: PlannerSimulator, name: str, iteration: int = 1) -> StageStatus:
    """A stage's record in the stored status."""
    return next(r for r in sim.status.stages if r.name == name and r.iteration == iteration)


def condition(sim: PlannerSimulator, kind: str) -> Condition:
    """A condition of the stored status."""
    return next(c for c in sim.status.conditions if c.type == kind)


def run(sim: PlannerSimulator, sim_job: SimJob) -> SimJob:
    """Lets a queued Job run, and the planner see it."""
    simulator_events.admit(
        sim, [j for j in sim.jobs.values() if j.state is JobState.QUEUED and not j.deleting].index(sim_job), 0
    )
    sim.reconcile()
    return sim_job


def succeed(sim: PlannerSimulator, sim_job: SimJob, *, readable: bool = True, **result: Any) -> None:
    """A Job succeeds."""
    outcome = sim.publish(sim_job).model_copy(update=result)
    sim_job.started = sim_job.started or sim.now
    sim.finish(sim_job, 0, "", outcome if readable else None)
    sim.release(sim_job, linger=False)


def fail(sim: PlannerSimulator, sim_job: SimJob, code: int | None, reason: str = "", **result: Any) -> None:
    """A Job fails."""
    outcome = StageResult(exit_code=code, **result) if code is not None else None
    sim.finish(sim_job, code, reason, outcome)
    sim.release(sim_job, linger=False)


def until(sim: PlannerSimulator, name: str, iteration: int = 1) -> SimJob:
    """Everything else succeeds until this stage's Job exists."""
    for _ in range(60):
        sim.reconcile()
        for sim_job in list(sim.jobs.values()):
            if sim_job.key.name == name and sim_job.key.iteration == iteration:
                if sim_job.state not in ENDED:
                    return sim_job
            elif sim_job.state not in ENDED and not sim_job.deleting:
                succeed(sim, sim_job)
    raise AssertionError(f"{name}@{iteration} never started: {sim.status.conditions}")


def finish(sim: PlannerSimulator) -> None:
    """Everything succeeds until the cycle has ended."""
    for _ in range(300):
        sim.reconcile()
        if sim.status.completion_time is not None:
            return
        for sim_job in list(sim.jobs.values()):
            if sim_job.state not in ENDED and not sim_job.deleting:
                succeed(sim, sim_job)
    raise AssertionError(f"did not finish: {sim.status.conditions}")


def wait(sim: PlannerSimulator, seconds: float) -> None:
    """Time passes."""
    sim.now += timedelta(seconds=seconds)


def live(sim: PlannerSimulator) -> set[str]:
    """Stages with an attempt that has not ended."""
    active = (AttemptState.PENDING, AttemptState.RUNNING, AttemptState.TERMINATING)
    return {f"{r.name}@{r.iteration}" for r in sim.status.stages if r.attempt and r.state in active}


def edit(sim: PlannerSimulator, **changes: Any) -> None:
    """Somebody edits the spec."""
    sim.set_spec(changes)


def restart(sim: PlannerSimulator, stage: str, iteration: int, token: str) -> None:
    """Somebody wants a stage again."""
    edit(sim, restart_from=RestartFrom(iteration=iteration, stage=stage, token=token))
