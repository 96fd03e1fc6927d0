"""Everything that happens in the simulator, and how often: planner runs, crashes, Jobs that end or vanish, people.

Nothing here is random by itself: every move takes two integers, so Hypothesis can shrink a schedule and a seeded driver
can replay one.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from medgr2_api.scheduling import RestartFrom, StageRef
from medgr2_api.stage_contract import StageResult
from medgr2_api.stages import stage_names
from medgr2_operator.plan.scheduling import job_name
from medgr2_operator.plan.types import AttemptKey, JobState
from tests.support.planner_invariants import one_writer
from tests.support.planner_objects import ENDED, SimJob, SimPod
from tests.support.planner_simulator import PlannerSimulator

Move = Callable[[PlannerSimulator, int, int], None]

#: (exit code, the executor's word, whether the checkpoint moved): every row of the failure table.
FAILURES: tuple[tuple[int | None, str, bool], ...] = (
    (1, "", False),
    (75, "TemporaryError", False),
    (137, "OOMKilled", False),
    (137, "SidecarCrashLoop", False),
    (85, "", True),
    (85, "", False),
    (143, "", False),
    (1, "DisruptionTarget", False),
    (85, "DisruptionTarget", True),
    (None, "RendezvousTimeout", False),
    (None, "", False),
    (1, "RendezvousTimeout", False),
    (75, "BudgetSpent", True),
    (65, "", False),
    (2, "", False),
    (64, "", False),
    (78, "", False),
)
#: The last rows end the cycle; picked rarely, or no schedule would get far.
_PERMANENT = 4


# -- planner runs ------------------------------------------------------------------------------------------------------


def reconcile(sim: PlannerSimulator, a: int, b: int) -> None:
    """All well: read, plan, apply."""
    sim.reconcile()


def reconcile_crash(sim: PlannerSimulator, a: int, b: int) -> None:
    """The operator dies after any single action."""
    cycle = sim.cycle()
    plan = sim.make_plan(cycle, sim.observe(cycle))
    sim.apply(plan, sim.version, crash_after=a % (2 + len(plan.deletes) + len(plan.creates)))
    sim.uids.clear()


def reconcile_slow(sim: PlannerSimulator, a: int, b: int) -> None:
    """The simulator goes on between any two readings, and before the plan is applied."""
    version, cycle = sim.version, sim.cycle()
    _something(sim, a // 3 + b)
    plan = sim.make_plan(cycle, sim.observe(cycle, lambda: (_something(sim, a), _something(sim, a // 5 + b))))
    _something(sim, b)
    sim.apply(plan, version)


def reconcile_old_cycle(sim: PlannerSimulator, a: int, b: int) -> None:
    """A planner that read the cycle long ago, and the simulator just now; its status write has to conflict."""
    if sim.old_cycles:
        version, cycle = sim.old_cycles[a % len(sim.old_cycles)]
        sim.apply(sim.make_plan(cycle, sim.observe(cycle)), version)


# -- what happens in the cluster --------------------------------------------------------------------------------------


def admit(sim: PlannerSimulator, a: int, b: int) -> None:
    """A queued Job gets its quota and its pod."""
    job = _pick(sim, a, lambda job: job.state is JobState.QUEUED and not job.deleting)
    if job is not None:
        one_writer(job.key, sim.pods.values())
        job.state, job.started, job.finished = JobState.RUNNING, sim.now, None
        sim.counter += 1
        pod = SimPod(f"{job.name}-{sim.counter}", job)
        sim.pods[pod.name] = pod


def requeue(sim: PlannerSimulator, a: int, b: int) -> None:
    """The queue takes the quota back; the pod may need a while to go."""
    job = _pick(sim, a, lambda job: job.state is JobState.RUNNING and not job.deleting)
    if job is not None:
        job.state, job.started, job.finished = JobState.QUEUED, None, sim.now
        sim.release(job, linger=bool(b % 2))


def advance(sim: PlannerSimulator, a: int, b: int) -> None:
    """A stage makes progress; whether the checkpoint moved shows at its end."""
    job = _pick(sim, a, lambda job: job.state is JobState.RUNNING)
    if job is not None:
        job.step += b % 50


def succeed(sim: PlannerSimulator, a: int, b: int) -> None:
    """A running stage publishes and ends; its result may be lost with the pod."""
    job = _pick(sim, a, lambda job: job.state is JobState.RUNNING)
    if job is not None:
        sim.finish(job, 0, "", sim.publish(job) if b % 8 else None)
        sim.release(job, linger=b % 4 == 3)


def fail(sim: PlannerSimulator, a: int, b: int) -> None:
    """A running stage ends in one of all the ways there are."""
    job = _pick(sim, a, lambda job: job.state is JobState.RUNNING)
    if job is not None:
        rows = len(FAILURES) if b % 5 == 0 else len(FAILURES) - _PERMANENT
        code, reason, progressed = FAILURES[(b // 5) % rows]
        job.step += 10 * progressed
        result = None
        if code is not None and b % 3:
            usage = {"generatorUSD": 0.2} if job.key.name == "generate" else {}
            result = StageResult.model_construct(
                exit_code=code, checkpoint_step=job.step if progressed else -1, usage=usage
            )
        sim.finish(job, code, reason, result)
        sim.release(job, linger=b % 4 == 3)


def vanish(sim: PlannerSimulator, a: int, b: int) -> None:
    """Someone deletes a Job; its pods may outlive it."""
    job = _pick(sim, a, lambda job: True)
    if job is not None:
        del sim.jobs[job.name]
        sim.release(job, linger=b % 3 > 0)


def finish_delete(sim: PlannerSimulator, a: int, b: int) -> None:
    """A Job that is being deleted: its stage checkpoints, fails or even succeeds; the Job may show that, or go."""
    job = _pick(sim, a, lambda job: job.deleting)
    if job is None:
        return
    if job.state not in ENDED and b % 3 == 0:
        if b % 2 and job.state is JobState.RUNNING:
            sim.finish(job, 0, "", sim.publish(job))
        else:
            sim.finish(job, 85, "", StageResult.model_construct(exit_code=85, checkpoint_step=job.step))
        sim.release(job, linger=False)
        return
    del sim.jobs[job.name]
    sim.release(job, linger=b % 4 == 3)


def end_pod(sim: PlannerSimulator, a: int, b: int) -> None:
    """A pod without use ends; one whose Job vanished may still publish."""
    pods = [pod for pod in sim.pods.values() if pod.terminating or pod.job.name not in sim.jobs]
    if pods:
        pod = pods[a % len(pods)]
        if b % 4 == 0 and pod.job.state is JobState.RUNNING:
            sim.publish(pod.job)
        del sim.pods[pod.name]


def pass_time(sim: PlannerSimulator, a: int, b: int) -> None:
    """Time passes."""
    sim.now += timedelta(seconds=1 + (a % 16) ** 2 * 4)


def jump(sim: PlannerSimulator, a: int, b: int) -> None:
    """Somebody sets the clock, forward or back."""
    sim.skew = (0.0, 3600.0, -3600.0, 90_000.0, 0.5, -5.0)[a % 6]


# -- people ------------------------------------------------------------------------------------------------------------


def edit(sim: PlannerSimulator, a: int, b: int) -> None:
    """An edit of the spec."""
    stage = StageRef(iteration=1, stage="sft")
    rate = sim.spec.policy.sft.model_copy(update={"learning_rate": 1e-5 * (1 + b % 2)})
    changes: dict[str, Any] = (
        {"suspend": not sim.spec.suspend},
        {"suspend": False},
        {"approved": [] if stage in sim.spec.approved else [stage]},
        {"iterations": min(sim.spec.iterations + 1, 3)},
        {"policy": sim.spec.policy.model_copy(update={"sft": rate})},
        {"max_parallel_stages": 1 + b % 4},
        {"budget": type(sim.spec.budget)()},
    )[a % 7]
    sim.set_spec(changes)


def restart(sim: PlannerSimulator, a: int, b: int) -> None:
    """Somebody wants a stage again."""
    names = list(stage_names())
    if len(sim.status.restart_tokens) < 4:
        wish = RestartFrom.model_construct(iteration=b % 3, stage=names[a % len(names)], token=f"t{sim.generation}")
        sim.set_spec({"restart_from": wish})


def stranger(sim: PlannerSimulator, a: int, b: int) -> None:
    """Another's Job has the name that ours would get; or goes away."""
    if sim.foreign_jobs:
        sim.foreign_jobs.clear()
    else:
        name = stage_names()[a % len(stage_names())]
        iteration = 0 if name == "prepare" else 1
        taken = job_name(sim.cycle().metadata.name, "uid-1", AttemptKey(iteration, name, "", 1 + b % 2))
        if taken not in sim.jobs:
            sim.foreign_jobs.add(taken)


# -- small things ------------------------------------------------------------------------------------------------------


def _something(sim: PlannerSimulator, a: int) -> None:
    moves = (admit, succeed, fail, finish_delete, end_pod, vanish, requeue)
    moves[a % len(moves)](sim, a // 7, a // 3)


def _pick(sim: PlannerSimulator, a: int, matches: Any) -> SimJob | None:
    jobs = [job for job in sim.jobs.values() if matches(job)]
    return jobs[a % len(jobs)] if jobs else None


#: Every move and how often it is made.
ACTIONS: dict[Move, int] = {
    reconcile: 30,
    reconcile_crash: 12,
    reconcile_slow: 16,
    reconcile_old_cycle: 3,
    admit: 22,
    succeed: 18,
    fail: 7,
    vanish: 4,
    requeue: 3,
    advance: 3,
    finish_delete: 8,
    end_pod: 8,
    pass_time: 8,
    jump: 1,
    edit: 6,
    restart: 4,
    stranger: 2,
}

#: The same by name, for schedules that can be read.
BY_NAME: dict[str, Move] = {move.__name__: move for move in ACTIONS}
