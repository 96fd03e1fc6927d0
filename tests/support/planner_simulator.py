"""A simulated cluster for the planner: API server, Job controller, pods, a volume and a clock.

Nothing happens here by itself: what can happen, and go wrong, is in `moves`, and what must hold then in `invariants`.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from medgr2_api.cycle import Cycle, CycleSpec
from medgr2_api.stage_contract import Progress, StageResult
from medgr2_api.stages import definition
from medgr2_api.status import CycleStatus
from medgr2_api.waiting import WaitingReason
from medgr2_operator.plan import planner
from medgr2_operator.plan.observation_index import oldest_relevant_iteration
from medgr2_operator.plan.types import (
    AttemptKey,
    JobCreate,
    JobDelete,
    JobState,
    Observed,
    ObservedJob,
    ObservedPod,
    Plan,
    Refusal,
)
from tests.support.cycle_specs import metadata
from tests.support.planner_invariants import (
    History,
    identity,
    inputs_exist,
    intent_first,
    models_go_on,
    one_live_job,
    one_writer,
    recorded_first,
    same_again,
)
from tests.support.planner_objects import ENDED, SimJob, SimPod

START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class PlannerSimulator:
    """The truth, and what the planner was told of it."""

    spec: CycleSpec
    check_conflicts: bool = True
    """False: an API server without optimistic concurrency (to see that it is needed)."""
    status: CycleStatus = field(default_factory=CycleStatus)
    version: int = 1
    generation: int = 1
    now: datetime = START
    skew: float = 0.0
    jobs: dict[str, SimJob] = field(default_factory=dict)
    pods: dict[str, SimPod] = field(default_factory=dict)
    foreign_jobs: set[str] = field(default_factory=set)
    published: dict[tuple[str, str], str] = field(default_factory=dict)
    unpromoted: set[tuple[str, str]] = field(default_factory=set)
    """Of these the ones whose model does not go on."""
    history: History = field(default_factory=History)
    uids: dict[str, str] = field(default_factory=dict)
    """What the executor remembers of Jobs that it created, until it dies."""
    waits_for: WaitingReason = WaitingReason.AWAITING_QUOTA
    """What queued Jobs wait for."""
    also_waits: dict[str, WaitingReason] = field(default_factory=dict)
    """What Jobs lack that run, by name."""
    refusals: tuple[Refusal, ...] = ()
    """What the API server does not take: these are not created."""
    counter: int = 0
    plans: int = 0
    old_cycles: deque[tuple[int, Cycle]] = field(default_factory=lambda: deque(maxlen=6))

    # -- what an executor does -----------------------------------------------------------------------------------------

    def cycle(self) -> Cycle:
        """The object as read now, with uids that no status has told yet."""
        return Cycle.model_construct(metadata=metadata(self.generation), spec=self.spec, status=self._status_now())

    def _status_now(self) -> CycleStatus:
        stages = [
            stage
            if stage.job_uid or stage.job_name not in self.uids
            else stage.model_copy(update={"job_uid": self.uids[stage.job_name]})
            for stage in self.status.stages
        ]
        return self.status.model_copy(update={"stages": stages})

    def observe(self, cycle: Cycle | None = None, meanwhile: Callable[[], object] = lambda: None) -> Observed:
        """Jobs, then pods, as an executor reads them that has read the cycle before: none that are too old to matter.

        Args:
            cycle: as it was read; None: as it is.
            meanwhile: what happens between the two.
        """
        oldest = oldest_relevant_iteration(cycle or self.cycle())
        jobs = tuple(job for job in self.jobs_now() if job.key.iteration >= oldest or not job.owned)
        meanwhile()
        pods = tuple(pod for pod in self.pods_now() if pod.key.iteration >= oldest)
        return Observed(jobs, pods, refusals=self.refusals)

    def make_plan(self, cycle: Cycle, observed: Observed) -> Plan:
        """Asks the planner; twice now and then, which must not matter."""
        now = self.now + timedelta(seconds=self.skew)
        self.plans += 1
        plan = planner.plan(cycle, observed, now)
        recorded_first(plan, cycle.status, observed)
        if self.plans % 16 == 0:
            same_again(plan, cycle, observed, now)
        return plan

    def apply(self, plan: Plan, version: int, crash_after: int | None = None) -> bool:
        """Status, deletes, creates; False: the status write conflicted, so nothing was done."""
        for action in ("status", *plan.deletes, *plan.creates)[:crash_after]:
            if isinstance(action, JobDelete):
                self._delete(action)
            elif isinstance(action, JobCreate):
                self._create(action)
            elif not self._write(plan.status, version):
                return False
        return True

    def reconcile(self) -> Plan:
        """All well: read, plan, apply."""
        cycle = self.cycle()
        plan = self.make_plan(cycle, self.observe(cycle))
        self.apply(plan, self.version)
        return plan

    def _write(self, status: CycleStatus, version: int) -> bool:
        if self.check_conflicts and version != self.version:
            return False
        if status != self._status_now():
            self.old_cycles.append((self.version, self.cycle()))
            self.history.check_status(status)
            self.status = status
            self.version += 1
        return True

    def _delete(self, delete: JobDelete) -> None:
        job = self.jobs.get(delete.name)
        if job is None or job.uid != delete.uid:
            return
        if job.state in ENDED:
            del self.jobs[job.name]
            return
        job.deleting = True
        for pod in self._pods_of(job):
            pod.terminating = True

    def _create(self, create: JobCreate) -> None:
        if create.name in self.jobs or create.name in self.foreign_jobs:
            return  # already there, and ours (or a stranger's: the next observation tells)
        if create.key in {refusal.key for refusal in self.refusals}:
            return
        self.history.check_create(create.key)
        identity(create)
        inputs_exist(create, self.published)
        models_go_on(create, self.unpromoted)
        if self.check_conflicts:
            intent_first(create, self.status)
        one_live_job(create.key, self.jobs.values())
        one_writer(create.key, self.pods.values())
        self.counter += 1
        self.history.note_create(create.key)
        self.uids[create.name] = f"uid-{self.counter}"
        self.jobs[create.name] = SimJob(create.key, create.name, self.uids[create.name], create.request)

    # -- what can happen to it -----------------------------------------------------------------------------------------

    def set_spec(self, changes: dict[str, Any]) -> None:
        """Somebody edits the spec."""
        self.old_cycles.append((self.version, self.cycle()))
        self.spec = self.spec.model_copy(update=changes)
        self.generation += 1
        self.version += 1

    def finish(self, job: SimJob, code: int | None, reason: str, result: StageResult | None) -> None:
        """A Job ends."""
        job.state = JobState.SUCCEEDED if code == 0 else JobState.FAILED
        job.exit_code, job.reason, job.result, job.finished = code, reason, result, self.now
        if result is not None and result.output_digest:
            place = (str(job.key.name), job.request.input_hash)
            (self.unpromoted.add if result.promoted is False else self.unpromoted.discard)(place)

    def release(self, job: SimJob, *, linger: bool) -> None:
        """A Job's pods go, at once or after a while."""
        for pod in self._pods_of(job):
            pod.terminating = True
            if not linger:
                del self.pods[pod.name]

    def publish(self, job: SimJob) -> StageResult:
        """Publishes, or finds what is published already."""
        place = (str(job.key.name), job.request.input_hash)
        reused = place in self.published
        digest = self.published.setdefault(place, hashlib.sha256("/".join(place).encode()).hexdigest())
        coin = int(digest[:8], 16)
        metrics, promoted, usage = {}, None, {}
        if job.key.name == "measure":
            checkpoints = ("sft", "grpo") if job.key.iteration else ("base",)
            metrics = {f"validation/{name}/macroAccuracy": coin % 1000 / 1000 for name in checkpoints}
        if definition(job.key.name).promoted:
            promoted = bool(coin % 3) if job.key.iteration else None
        if job.key.name == "generate" and not reused:
            usage = {"generatorUSD": 0.5}
        return StageResult.model_construct(
            exit_code=0,
            input_hash=job.request.input_hash,
            output_digest=digest,
            reused=reused and not job.request.collect,
            promoted=promoted,
            metrics=metrics,
            usage=usage,
        )

    def obey(self) -> None:
        """Whatever was asked to go is gone."""
        for job in [job for job in self.jobs.values() if job.deleting]:
            del self.jobs[job.name]
            self.release(job, linger=False)
        for pod in [pod for pod in self.pods.values() if pod.terminating or pod.job.name not in self.jobs]:
            del self.pods[pod.name]

    # -- what a reader sees --------------------------------------------------------------------------------------------

    def jobs_now(self) -> tuple[ObservedJob, ...]:
        """Jobs, with those of foreign_jobs."""
        ours = tuple(
            ObservedJob(
                key=job.key,
                name=job.name,
                uid=job.uid,
                state=job.state,
                deleting=job.deleting,
                exit_code=job.exit_code,
                reason=job.reason,
                result=job.result,
                started=job.started,
                finished=job.finished,
                waiting=self.waits_for if job.state is JobState.QUEUED else self.also_waits.get(job.name),
                progress=Progress.model_construct(step=job.step, total=100) if job.state is JobState.RUNNING else None,
            )
            for job in self.jobs.values()
        )
        others = tuple(
            ObservedJob(AttemptKey(0, "prepare", "", 1), name, "theirs", JobState.RUNNING, owned=False)
            for name in self.foreign_jobs
        )
        return ours + others

    def pods_now(self) -> tuple[ObservedPod, ...]:
        """Pods."""
        return tuple(ObservedPod(pod.name, pod.job.key, pod.terminating) for pod in self.pods.values())

    def _pods_of(self, job: SimJob) -> list[SimPod]:
        return [pod for pod in self.pods.values() if pod.job is job]
