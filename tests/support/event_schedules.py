"""A random schedule of moves, and its end: every cycle has to end once nothing goes wrong any more."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

from medgr2_api.scheduling import StageRef
from medgr2_api.status import CycleStatus, Phase
from medgr2_operator.plan.status_compaction import LIMIT_BYTES, size
from tests.support.cycle_specs import SPECS, spec_of
from tests.support.planner_invariants import InvariantBroken, one_writer
from tests.support.planner_objects import ENDED
from tests.support.planner_simulator import PlannerSimulator
from tests.support.simulator_events import ACTIONS, BY_NAME

MAX_ROUNDS = 400
#: Schedules of the seeds below this are run by `make test`.
SEEDS = 1000


def run_schedule(seed: int, **options: Any) -> PlannerSimulator:
    """One random schedule, the same for the same seed; its name is in the message when it breaks."""
    rng = random.Random(seed)
    sim = PlannerSimulator(spec_of(rng.randrange(len(SPECS))), **options)
    try:
        for name in rng.choices(list(BY_NAME), list(ACTIONS.values()), k=rng.randrange(15, 90)):
            BY_NAME[name](sim, rng.randrange(256), rng.randrange(256))
        settle(sim)
    except InvariantBroken as broken:
        raise InvariantBroken(f"{broken} [schedule {seed}]") from None
    return sim


def settle(sim: PlannerSimulator) -> None:
    """Lets nothing go wrong any more and brings the cycle to its end; then nothing may be left to do."""
    sim.skew = 0.0
    sim.foreign_jobs.clear()
    if sim.spec.suspend:
        _rest(sim)
    approved = [StageRef.model_construct(iteration=i, stage=name) for i in range(4) for name in sim.spec.pause_before]
    sim.set_spec({"suspend": False, "approved": approved, "budget": type(sim.spec.budget)()})
    for _ in range(MAX_ROUNDS):
        planned = sim.reconcile()
        going = any(
            job.deleting for job in sim.jobs.values()
        )  # the planner has asked; the simulator has not done it yet
        if sim.status.completion_time is not None and not planned.deletes and not going:
            break
        _kindly(sim)
    else:
        raise InvariantBroken(f"ends: still {sim.status.phase} after {MAX_ROUNDS} rounds: {sim.status.conditions}")
    _check_end(sim)


def _rest(sim: PlannerSimulator) -> None:
    """While suspended, everything stops although nobody but the planner asks it to."""
    for _ in range(20):
        sim.reconcile()
        sim.obey()
    alive = [pod.name for pod in sim.pods.values()] + [j.name for j in sim.jobs.values() if j.state not in ENDED]
    if alive:
        raise InvariantBroken(f"suspends: still alive: {alive}")


def _kindly(sim: PlannerSimulator) -> None:
    sim.now += timedelta(seconds=700)
    sim.obey()
    for job in sim.jobs.values():
        if job.state not in ENDED:
            one_writer(job.key, sim.pods.values())
            job.started = job.started or sim.now
            sim.finish(job, 0, "", sim.publish(job))
            sim.release(job, linger=False)


def _check_end(sim: PlannerSimulator) -> None:
    if sim.status.phase not in (Phase.COMPLETE, Phase.FAILED):
        raise InvariantBroken(f"ends: {sim.status.phase}")
    if any(job.state not in ENDED for job in sim.jobs.values()):
        raise InvariantBroken("ends: a Job is alive after the end")
    planned = sim.make_plan(sim.cycle(), sim.observe())
    if planned.status != sim.status or planned.deletes or planned.creates:
        raise InvariantBroken("ends: there is still something to do after the end")
    if size(sim.status) > LIMIT_BYTES:
        raise InvariantBroken(f"small: {size(sim.status)} bytes")
    if CycleStatus.model_validate(sim.status.dump()) != sim.status:
        raise InvariantBroken("stored: the status does not survive being written and read")
