"""A random schedule of moves, and its end: every cycle has to end once nothing goes wrong any more."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

from medgr2_api.scheduling import StageRef
from medgr2_api.status import CycleStatus, Phase
from medgr2_operator.plan.status_compaction import LIMIT_BYTES, size
from tests.support.cycle_specs import SPECS, spec_of
from tests.support.planner_invariants import Broken, one_writer
from tests.support.planner_objects import ENDED
from tests.support.planner_simulator import PlannerSimulator
from tests.support.simulator_events import ACTIONS, BY_NAME

MAX_ROUNDS = 400


def run_schedule(seed: int, **options: Any) -> PlannerSimulator:
    """One random schedule, the same for the same seed; its name is in the message when it breaks."""
    rng = random.Random(seed)
    made = PlannerSimulator(spec_of(rng.randrange(len(SPECS))), **options)
    try:
        for name in rng.choices(list(BY_NAME), list(ACTIONS.values()), k=rng.randrange(15, 90)):
            BY_NAME[name](made, rng.randrange(256), rng.randrange(256))
        settle(made)
    except Broken as broken:
        raise Broken(f"{broken} [schedule {seed}]") from None
    return made


def settle(w: PlannerSimulator) -> None:
    """Lets nothing go wrong any more and brings the cycle to its end; then nothing may be left to do."""
    w.skew = 0.0
    w.strangers.clear()
    if w.spec.suspend:
        _rest(w)
    approved = [StageRef.model_construct(iteration=i, stage=name) for i in range(4) for name in w.spec.pause_before]
    w.set_spec({"suspend": False, "approved": approved, "budget": type(w.spec.budget)()})
    for _ in range(MAX_ROUNDS):
        made = w.reconcile()
        going = any(job.deleting for job in w.jobs.values())  # the planner has asked; the simulator has not done it yet
        if w.status.completion_time is not None and not made.deletes and not going:
            break
        _kindly(w)
    else:
        raise Broken(f"ends: still {w.status.phase} after {MAX_ROUNDS} rounds: {w.status.conditions}")
    _check_end(w)


def _rest(w: PlannerSimulator) -> None:
    """While suspended, everything stops although nobody but the planner asks it to."""
    for _ in range(20):
        w.reconcile()
        w.obey()
    alive = [pod.name for pod in w.pods.values()] + [j.name for j in w.jobs.values() if j.state not in ENDED]
    if alive:
        raise Broken(f"suspends: still alive: {alive}")


def _kindly(w: PlannerSimulator) -> None:
    w.now += timedelta(seconds=700)
    w.obey()
    for job in w.jobs.values():
        if job.state not in ENDED:
            one_writer(job.key, w.pods.values())
            job.started = job.started or w.now
            w.finish(job, 0, "", w.publish(job))
            w.release(job, linger=False)


def _check_end(w: PlannerSimulator) -> None:
    if w.status.phase not in (Phase.COMPLETE, Phase.FAILED):
        raise Broken(f"ends: {w.status.phase}")
    if any(job.state not in ENDED for job in w.jobs.values()):
        raise Broken("ends: a Job is alive after the end")
    made = w.make_plan(w.cycle(), w.observe())
    if made.status != w.status or made.deletes or made.creates:
        raise Broken("ends: there is still something to do after the end")
    if size(w.status) > LIMIT_BYTES:
        raise Broken(f"small: {size(w.status)} bytes")
    if CycleStatus.model_validate(w.status.dump()) != w.status:
        raise Broken("stored: the status does not survive being written and read")
