"""A small world for the planner: API server, Job controller, pods, a volume, a clock, and everything that goes wrong.

Nothing here is random by itself: every action takes two integers, so Hypothesis can shrink a schedule and a seeded
driver can replay one. `Broken` is raised as soon as an invariant does not hold.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from medgr2_api.cycle import Cycle, CycleSpec, Metadata
from medgr2_api.scheduling import RestartFrom, StageRef
from medgr2_api.stages import Progress, StageName, StageRequest, StageResult
from medgr2_api.status import AttemptState, CycleStatus, Phase
from medgr2_operator.plan import machine
from medgr2_operator.plan.compact import LIMIT_BYTES, size
from medgr2_operator.plan.model import (
    AttemptKey,
    JobCreate,
    JobDelete,
    JobState,
    Observed,
    ObservedJob,
    ObservedPod,
    Plan,
    StageKey,
)
from medgr2_operator.plan.names import job_name

START = datetime(2026, 1, 1, tzinfo=UTC)
TERMINAL = (AttemptState.SUCCEEDED, AttemptState.FAILED, AttemptState.GONE)
ENDED = (JobState.SUCCEEDED, JobState.FAILED)
MAX_ROUNDS = 400

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
    (None, "NodeLost", False),
    (None, "", False),
    (1, "RendezvousTimeout", False),
    (65, "", False),
    (2, "", False),
    (64, "", False),
    (78, "", False),
)
#: The last rows end the cycle; picked rarely, or no schedule would get far.
_PERMANENT = 4

SPECS: tuple[dict[str, Any], ...] = (
    {},
    {"iterations": 1, "maxParallelStages": 1, "stages": [{"name": "grpo", "enabled": False}]},
    {
        "iterations": 1,
        "curation": {"selection": {"strategy": "All"}},
        "stages": [{"name": "grpo", "enabled": False}, {"name": "preferences", "enabled": False}],
    },
    {"iterations": 2, "earlyStopping": {"patience": 1, "minDelta": 0.0}, "policy": {"initFrom": "Previous"}},
    {
        "iterations": 1,
        "pauseBefore": ["sft"],
        "stages": [{"name": "evaluate", "enabled": False}, {"name": "generate", "shards": 2}],
    },
    {
        "iterations": 1,
        "failurePolicy": {"maxRetries": 1, "maxInfraRestarts": 2, "backoffSeconds": 0},
        "stages": [{"name": "score", "timeoutSeconds": 500, "pendingDeadlineSeconds": 700}],
    },
    {
        "iterations": 1,
        "budget": {"gpuHours": 1, "generatorUSD": 0.5},
        "stages": [
            {"name": name, "numNodes": 2, "resources": {"limits": {"nvidia.com/gpu": 4}}}
            for name in ("reward", "sft", "grpo")
        ],
    },
    {"iterations": 1, "activeDeadlineSeconds": 20000, "budget": {"generatorUSD": 0.3, "onExceeded": "Fail"}},
)


class Broken(AssertionError):
    """An invariant does not hold."""


@lru_cache(maxsize=64)
def spec_of(number: int) -> CycleSpec:
    """One of the specs."""
    return make_spec(**SPECS[number % len(SPECS)])


@lru_cache(maxsize=256)
def _metadata(generation: int) -> Metadata:
    name = "a-rather-long-name-of-a-cycle-for-the-test-of-names"
    return Metadata(name=name, namespace="ml", uid="uid-1", generation=generation)


def make_spec(**changes: Any) -> CycleSpec:
    """A small valid spec, with changes at its top level (policy merged)."""
    document: dict[str, Any] = {
        "iterations": 2,
        "workspace": {"persistentVolumeClaim": {"claimName": "data"}},
        "data": {"sources": [{"name": "seed", "format": "VQAJsonl", "uri": "data/seed"}]},
        "generator": {"openAI": {"model": "m", "baseURL": "http://m:8000/v1"}},
        "rewardModel": {"baseModel": "models/r"},
    }
    document |= changes
    document["policy"] = {"baseModel": "models/p", **changes.get("policy", {})}
    return CycleSpec.model_validate(document)


@dataclass
class SimJob:
    """A Job as the API server holds it."""

    key: AttemptKey
    name: str
    uid: str
    request: StageRequest
    state: JobState = JobState.QUEUED
    deleting: bool = False
    exit_code: int | None = None
    reason: str = ""
    result: StageResult | None = None
    started: datetime | None = None
    finished: datetime | None = None
    step: int = 0


@dataclass
class SimPod:
    """A pod that is alive."""

    name: str
    job: SimJob
    terminating: bool = False


@dataclass
class World:
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
    strangers: set[str] = field(default_factory=set)
    published: dict[tuple[str, str], str] = field(default_factory=dict)
    created: dict[AttemptKey, int] = field(default_factory=dict)
    seen: set[AttemptKey] = field(default_factory=set)
    """Attempts whose Job's uid is, or was, in a stored status."""
    ended: dict[AttemptKey, AttemptState] = field(default_factory=dict)
    newest: dict[tuple[StageKey, str], int] = field(default_factory=dict)
    tokens: dict[StageKey, list[str]] = field(default_factory=dict)
    counter: int = 0
    plans: int = 0
    old_jobs: deque[tuple[ObservedJob, ...]] = field(default_factory=lambda: deque(maxlen=6))
    old_pods: deque[tuple[ObservedPod, ...]] = field(default_factory=lambda: deque(maxlen=6))
    old_cycles: deque[tuple[int, Cycle]] = field(default_factory=lambda: deque(maxlen=6))

    # -- what an executor does ---------------------------------------------------------------------------------------

    def cycle(self) -> Cycle:
        """The object as read now."""
        return Cycle.model_construct(metadata=_metadata(self.generation), spec=self.spec, status=self.status)

    def observe(self) -> Observed:
        """Jobs and pods as they are."""
        return Observed(self._jobs_now(), self._pods_now())

    def make_plan(self, cycle: Cycle, observed: Observed) -> Plan:
        """Asks the planner; twice now and then, which must not matter."""
        now = self.now + timedelta(seconds=self.skew)
        self.plans += 1
        made = machine.plan(cycle, observed, now)
        _recorded_first(made, cycle.status, observed)
        if self.plans % 16 == 0:
            before = cycle.status.model_copy(deep=True)
            if machine.plan(cycle, observed, now) != made:
                raise Broken("idempotent: the same input gave another plan")
            if cycle.status != before:
                raise Broken("pure: planning changed its input")
        return made

    def apply(self, made: Plan, version: int, crash_after: int | None = None) -> bool:
        """Status, deletes, creates; False: the status write conflicted, so nothing was done."""
        for action in ("status", *made.deletes, *made.creates)[:crash_after]:
            if isinstance(action, JobDelete):
                self._delete(action)
            elif isinstance(action, JobCreate):
                self._create(action)
            elif not self._write(made.status, version):
                return False
        return True

    def _write(self, status: CycleStatus, version: int) -> bool:
        if self.check_conflicts and version != self.version:
            return False
        if status != self.status:
            self.old_cycles.append((self.version, self.cycle()))
            self._check_status(status)
            self.status = status
            self.version += 1
        return True

    def _delete(self, delete: JobDelete) -> None:
        job = self.jobs.get(delete.name)
        if job is None or job.uid != delete.uid:
            return
        if job.state in ENDED:
            del self.jobs[job.name]
            self._remember()
            return
        job.deleting = True
        for pod in self._pods_of(job):
            pod.terminating = True
        self._remember()

    def _create(self, create: JobCreate) -> None:
        if create.name in self.jobs or create.name in self.strangers:
            return  # already there, and ours (or a stranger's: the next observation tells)
        if create.key in self.created and (create.key in self.seen or create.key in self.ended):
            raise Broken(f"created once: {create.key} was created again")
        request = create.request
        if len(create.name) > 52 or request.attempt != create.key.attempt or request.token != create.key.token:
            raise Broken(f"identity: {create}")
        for role, ref in request.inputs.items():
            if self.published.get((ref.stage, ref.path.rsplit("/", 1)[1])) != ref.output_digest:
                raise Broken(f"inputs exist: {create.key} reads {role}, which was never published")
        if "prepare" not in request.inputs and request.stage not in (
            StageName.PREPARE,
            StageName.SCORE,
            StageName.REPORT,
        ):
            raise Broken(f"inputs exist: {create.key} was started without prepare")
        intended = any(
            (r.iteration, r.name, r.token, r.attempt, r.job_name)
            == (create.key.iteration, create.key.name, create.key.token, create.key.attempt, create.name)
            and r.state is AttemptState.PENDING
            for r in self.status.stages
        )
        if self.check_conflicts and not intended:
            raise Broken(f"intent first: {create.key} is not in the stored status")
        for other in self.jobs.values():
            if other.key.stage == create.key.stage and other.state not in ENDED:
                raise Broken(f"one writer: {create.key} was created beside the Job of {other.key}")
        self._one_writer(create.key)
        self.counter += 1
        self.created[create.key] = self.created.get(create.key, 0) + 1
        self.jobs[create.name] = SimJob(create.key, create.name, f"uid-{self.counter}", request)
        self._remember()

    # -- planner runs ------------------------------------------------------------------------------------------------

    def reconcile(self, a: int = 0, b: int = 0) -> Plan:
        """All well: read, plan, apply."""
        made = self.make_plan(self.cycle(), self.observe())
        self.apply(made, self.version)
        return made

    def reconcile_crash(self, a: int, b: int) -> None:
        """The operator dies after any single action."""
        made = self.make_plan(self.cycle(), self.observe())
        self.apply(made, self.version, crash_after=a % (2 + len(made.deletes) + len(made.creates)))

    def reconcile_cached(self, a: int, b: int) -> None:
        """Jobs and pods from caches that lag, each by its own time."""
        jobs = self.old_jobs[a % len(self.old_jobs)] if self.old_jobs else self._jobs_now()
        pods = self.old_pods[b % len(self.old_pods)] if self.old_pods else self._pods_now()
        self.apply(self.make_plan(self.cycle(), Observed(jobs, pods, fresh=False)), self.version)

    def reconcile_slow(self, a: int, b: int) -> None:
        """The world goes on between reading and applying."""
        version, cycle = self.version, self.cycle()
        jobs = self._jobs_now()
        self._something(a)
        pods = self._pods_now()
        made = self.make_plan(cycle, Observed(jobs, pods))
        self._something(b)
        self.apply(made, version)

    def reconcile_old_cycle(self, a: int, b: int) -> None:
        """A planner that read the cycle long ago, and the world just now; its status write has to conflict."""
        if self.old_cycles:
            version, cycle = self.old_cycles[a % len(self.old_cycles)]
            self.apply(self.make_plan(cycle, self.observe()), version)

    # -- the world's own moves ---------------------------------------------------------------------------------------

    def admit(self, a: int, b: int) -> None:
        """A queued Job gets its quota and its pod."""
        job = self._pick(a, lambda job: job.state is JobState.QUEUED and not job.deleting)
        if job is not None:
            self._one_writer(job.key)
            job.state, job.started = JobState.RUNNING, self._clock()
            self.counter += 1
            pod = SimPod(f"{job.name}-{self.counter}", job)
            self.pods[pod.name] = pod
            self._remember()

    def requeue(self, a: int, b: int) -> None:
        """The queue takes the quota back; the pod may need a while to go."""
        job = self._pick(a, lambda job: job.state is JobState.RUNNING and not job.deleting)
        if job is not None:
            job.state, job.started = JobState.QUEUED, None
            self._release(job, linger=bool(b % 2))

    def advance(self, a: int, b: int) -> None:
        """A stage makes progress; whether the checkpoint moved shows at its end."""
        job = self._pick(a, lambda job: job.state is JobState.RUNNING)
        if job is not None:
            job.step += b % 50
            self._remember()

    def succeed(self, a: int, b: int) -> None:
        """A running stage publishes and ends; its result may be lost with the pod."""
        job = self._pick(a, lambda job: job.state is JobState.RUNNING)
        if job is not None:
            self._finish(job, 0, "", self._publish(job) if b % 8 else None)
            self._release(job, linger=b % 4 == 3)

    def fail(self, a: int, b: int) -> None:
        """A running stage ends in one of all the ways there are."""
        job = self._pick(a, lambda job: job.state is JobState.RUNNING)
        if job is not None:
            rows = len(FAILURES) if b % 5 == 0 else len(FAILURES) - _PERMANENT
            code, reason, progressed = FAILURES[(b // 5) % rows]
            job.step += 10 * progressed
            result = None
            if code is not None and b % 3:
                usage = {"generatorUSD": 0.2} if job.key.name is StageName.GENERATE else {}
                result = StageResult.model_construct(
                    exit_code=code, checkpoint_step=job.step if progressed else -1, usage=usage
                )
            self._finish(job, code, reason, result)
            self._release(job, linger=b % 4 == 3)

    def vanish(self, a: int, b: int) -> None:
        """Someone deletes a Job; its pods may outlive it."""
        job = self._pick(a, lambda job: True)
        if job is not None:
            del self.jobs[job.name]
            self._release(job, linger=b % 3 > 0)

    def finish_delete(self, a: int, b: int) -> None:
        """A Job that is being deleted: its stage checkpoints, fails or even succeeds; the Job may show that, or go."""
        job = self._pick(a, lambda job: job.deleting)
        if job is None:
            return
        if job.state not in ENDED and b % 3 == 0:
            if b % 2 and job.state is JobState.RUNNING:
                self._finish(job, 0, "", self._publish(job))
            else:
                self._finish(job, 85, "", StageResult.model_construct(exit_code=85, checkpoint_step=job.step))
            self._release(job, linger=False)
            return
        del self.jobs[job.name]
        self._release(job, linger=b % 4 == 3)

    def end_pod(self, a: int, b: int) -> None:
        """A pod without use ends; one whose Job vanished may still publish."""
        pods = [pod for pod in self.pods.values() if pod.terminating or pod.job.name not in self.jobs]
        if pods:
            pod = pods[a % len(pods)]
            if b % 4 == 0 and pod.job.state is JobState.RUNNING:
                self._publish(pod.job)
            del self.pods[pod.name]
            self._remember()

    def pass_time(self, a: int, b: int) -> None:
        """Time passes."""
        self.now += timedelta(seconds=1 + (a % 16) ** 2 * 4)

    def jump(self, a: int, b: int) -> None:
        """Somebody sets the clock, forward or back."""
        self.skew = (0.0, 3600.0, -3600.0, 90_000.0, 0.5, -5.0)[a % 6]

    # -- people ------------------------------------------------------------------------------------------------------

    def edit(self, a: int, b: int) -> None:
        """An edit of the spec."""
        stage = StageRef(iteration=1, stage=StageName.SFT)
        rate = self.spec.policy.sft.model_copy(update={"learning_rate": 1e-5 * (1 + b % 2)})
        changes: dict[str, Any] = (
            {"suspend": not self.spec.suspend},
            {"suspend": False},
            {"approved": [] if stage in self.spec.approved else [stage]},
            {"iterations": min(self.spec.iterations + 1, 3)},
            {"policy": self.spec.policy.model_copy(update={"sft": rate})},
            {"max_parallel_stages": 1 + b % 4},
            {"budget": type(self.spec.budget)()},
        )[a % 7]
        self._set_spec(changes)

    def restart(self, a: int, b: int) -> None:
        """Somebody wants a stage again."""
        names = list(StageName)
        if len(self.status.restart_tokens) < 4:
            wish = RestartFrom.model_construct(
                iteration=b % 3, stage=names[a % len(names)], token=f"t{self.generation}"
            )
            self._set_spec({"restart_from": wish})

    def stranger(self, a: int, b: int) -> None:
        """Another's Job has the name that ours would get; or goes away."""
        if self.strangers:
            self.strangers.clear()
        else:
            name = list(StageName)[a % len(StageName)]
            iteration = 0 if name is StageName.PREPARE else 1
            taken = job_name(self.cycle().metadata.name, "uid-1", AttemptKey(iteration, name, "", 1 + b % 2))
            if taken not in self.jobs:
                self.strangers.add(taken)
        self._remember()

    def _set_spec(self, changes: dict[str, Any]) -> None:
        self.old_cycles.append((self.version, self.cycle()))
        self.spec = self.spec.model_copy(update=changes)
        self.generation += 1
        self.version += 1

    # -- the end -----------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Makes the world kind and sees the cycle through to its end; then nothing may be left to do."""
        self.skew = 0.0
        self.strangers.clear()
        if self.spec.suspend:
            self._rest()
        approved = [
            StageRef.model_construct(iteration=i, stage=name) for i in range(4) for name in self.spec.pause_before
        ]
        self._set_spec({"suspend": False, "approved": approved, "budget": type(self.spec.budget)()})
        for _ in range(MAX_ROUNDS):
            made = self.reconcile()
            if self.status.completion_time is not None and not made.deletes:
                break
            self._kindly()
        else:
            raise Broken(f"ends: still {self.status.phase} after {MAX_ROUNDS} rounds: {self.status.conditions}")
        self._check_end()

    def _rest(self) -> None:
        """While suspended, everything stops although nobody but the planner asks it to."""
        for _ in range(20):
            self.reconcile()
            self._obey()
        alive = [pod.name for pod in self.pods.values()] + [j.name for j in self.jobs.values() if j.state not in ENDED]
        if alive:
            raise Broken(f"suspends: still alive: {alive}")

    def _kindly(self) -> None:
        self.now += timedelta(seconds=700)
        self._obey()
        for job in self.jobs.values():
            if job.state not in ENDED:
                self._one_writer(job.key)
                job.started = job.started or self._clock()
                self._finish(job, 0, "", self._publish(job))
                self._release(job, linger=False)

    def _obey(self) -> None:
        """Whatever was asked to go is gone."""
        for job in [job for job in self.jobs.values() if job.deleting]:
            del self.jobs[job.name]
            self._release(job, linger=False)
        for pod in [pod for pod in self.pods.values() if pod.terminating or pod.job.name not in self.jobs]:
            del self.pods[pod.name]
        self._remember()

    def _check_end(self) -> None:
        if self.status.phase not in (Phase.COMPLETE, Phase.FAILED):
            raise Broken(f"ends: {self.status.phase}")
        if any(job.state not in ENDED for job in self.jobs.values()):
            raise Broken("ends: a Job is alive after the end")
        made = self.make_plan(self.cycle(), self.observe())
        if made.status != self.status or made.deletes or made.creates:
            raise Broken("ends: there is still something to do after the end")
        if size(self.status) > LIMIT_BYTES:
            raise Broken(f"small: {size(self.status)} bytes")
        if CycleStatus.model_validate(self.status.dump()) != self.status:
            raise Broken("stored: the status does not survive being written and read")

    # -- invariants over stored statuses -----------------------------------------------------------------------------

    def _check_status(self, status: CycleStatus) -> None:
        for record in status.stages:
            if record.attempt == 0:
                continue
            key = AttemptKey(record.iteration, record.name, record.token, record.attempt)
            state = self.ended.get(key)
            if state is not None and record.state is not state:
                raise Broken(f"terminal for ever: {key} was {state}, is {record.state}")
            if record.state in TERMINAL:
                self.ended[key] = record.state
            if record.job_uid:
                self.seen.add(key)
            newest = self.newest.get((key.stage, key.token), 0)
            if record.attempt < newest:
                raise Broken(f"forward: {key} after attempt {newest}")
            self.newest[key.stage, key.token] = record.attempt
            tokens = self.tokens.setdefault(key.stage, [])
            if key.token in tokens[:-1]:
                raise Broken(f"forward: {key} after token {tokens[-1]}")
            if key.token not in tokens:
                tokens.append(key.token)

    def _one_writer(self, key: AttemptKey) -> None:
        for pod in self.pods.values():
            if pod.job.key.stage == key.stage and pod.job.key != key:
                raise Broken(f"one writer: {key} beside the pod {pod.name} of {pod.job.key}")

    # -- small things ------------------------------------------------------------------------------------------------

    def _clock(self) -> datetime:
        return self.now

    def _something(self, a: int) -> None:
        moves = (self.admit, self.succeed, self.fail, self.finish_delete, self.end_pod, self.vanish, self.requeue)
        moves[a % len(moves)](a // 7, a // 3)

    def _pick(self, a: int, wanted: Any) -> SimJob | None:
        found = [job for job in self.jobs.values() if wanted(job)]
        return found[a % len(found)] if found else None

    def _pods_of(self, job: SimJob) -> list[SimPod]:
        return [pod for pod in self.pods.values() if pod.job is job]

    def _release(self, job: SimJob, *, linger: bool) -> None:
        for pod in self._pods_of(job):
            pod.terminating = True
            if not linger:
                del self.pods[pod.name]
        self._remember()

    def _finish(self, job: SimJob, code: int | None, reason: str, result: StageResult | None) -> None:
        job.state = JobState.SUCCEEDED if code == 0 else JobState.FAILED
        job.exit_code, job.reason, job.result, job.finished = code, reason, result, self._clock()

    def _publish(self, job: SimJob) -> StageResult:
        """Publishes, or finds what is published already."""
        place = (str(job.key.name), job.request.input_hash)
        reused = place in self.published
        digest = self.published.setdefault(place, hashlib.sha256("/".join(place).encode()).hexdigest())
        coin = int(digest[:8], 16)
        metrics, promoted, usage = {}, None, {}
        if job.key.name is StageName.EVALUATE:
            checkpoints = ("sft", "grpo") if job.key.iteration else ("base",)
            metrics = {f"validation/{name}/macroAccuracy": coin % 1000 / 1000 for name in checkpoints}
        if job.key.name is StageName.REWARD:
            promoted = bool(coin % 3) if job.key.iteration else None
        if job.key.name is StageName.GENERATE and not reused:
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

    def _remember(self) -> None:
        """What a cache may still show later."""
        self.old_jobs.append(self._jobs_now())
        self.old_pods.append(self._pods_now())

    def _jobs_now(self) -> tuple[ObservedJob, ...]:
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
                pending_reason="QuotaExhausted" if job.state is JobState.QUEUED else "",
                progress=Progress.model_construct(step=job.step, total=100) if job.state is JobState.RUNNING else None,
            )
            for job in self.jobs.values()
        )
        others = tuple(
            ObservedJob(AttemptKey(0, StageName.PREPARE, "", 1), name, "theirs", JobState.RUNNING, owned=False)
            for name in self.strangers
        )
        return ours + others

    def _pods_now(self) -> tuple[ObservedPod, ...]:
        return tuple(ObservedPod(pod.name, pod.job.key, pod.terminating) for pod in self.pods.values())


def _recorded_first(made: Plan, stored: CycleStatus, observed: Observed) -> None:
    """A result that the planner saw is in the stored status before it deletes the Job that carries it."""
    ended = {job.uid: job.key for job in observed.jobs if job.state in ENDED}
    for delete in made.deletes:
        key = ended.get(delete.uid)
        for record in stored.stages if key is not None else ():
            if AttemptKey(record.iteration, record.name, record.token, record.attempt) == key:
                raise Broken(f"recorded first: {key} is deleted, and its result is not stored")


#: Every move and how often it is made.
ACTIONS: dict[str, int] = {
    "reconcile": 30,
    "reconcile_crash": 12,
    "reconcile_cached": 8,
    "reconcile_slow": 8,
    "reconcile_old_cycle": 3,
    "admit": 22,
    "succeed": 18,
    "fail": 7,
    "vanish": 4,
    "requeue": 3,
    "advance": 3,
    "finish_delete": 8,
    "end_pod": 8,
    "pass_time": 8,
    "jump": 1,
    "edit": 6,
    "restart": 4,
    "stranger": 2,
}


def run_schedule(seed: int, **world: Any) -> World:
    """One random schedule, the same for the same seed; its name is in the message when it breaks."""
    rng = random.Random(seed)
    made = World(spec_of(rng.randrange(len(SPECS))), **world)
    try:
        for name in rng.choices(list(ACTIONS), list(ACTIONS.values()), k=rng.randrange(15, 90)):
            getattr(made, name)(rng.randrange(256), rng.randrange(256))
        made.settle()
    except Broken as broken:
        raise Broken(f"{broken} [schedule {seed}]") from None
    return made
