"""Carries out plans with processes: what the operator does with Jobs, this does with subprocesses and `state.json`."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from medgr2_api import paths
from medgr2_api.cycle import Cycle
from medgr2_api.rollout_gpus import share
from medgr2_api.stage_contract import (
    DEEPSPEED_ENV,
    NUM_PROC_PER_NODE_ENV,
    REQUEST_ENV,
    RESULT_PATH_ENV,
    SECRETS_ENV,
    VLLM_GPUS_ENV,
    VLLM_NO_GPUS,
    WORKSPACE_ENV,
    ExitCode,
    Progress,
    Shard,
    StageResult,
)
from medgr2_api.stages import definition
from medgr2_api.status import AttemptState, Phase

from ..plan import planner
from ..plan.shard_results import combine, worst
from ..plan.types import AttemptKey, Event, JobCreate, JobDelete, JobState, Observed, ObservedJob, ObservedPod, Plan
from .approvals import Approvals
from .forkserver_client import Exited, ForkserverClient
from .gpus import VISIBLE, Gpus
from .state import StateFile

_UNFINISHED = (AttemptState.PENDING, AttemptState.RUNNING, AttemptState.TERMINATING)


@dataclass
class LocalAttempt:
    """An attempt whose forkserver this executor started."""

    create: JobCreate
    uid: str
    started: datetime
    shards: list[str]
    """Names of its logs and results, one per shard."""
    waiting: list[str] = field(default_factory=list)
    """Those of them that no GPU was free for yet."""
    exit_codes: dict[str, int] = field(default_factory=dict)
    finished: datetime | None = None
    kill_at: float | None = None
    """Monotonic time of the SIGKILL after a SIGTERM."""

    @property
    def alive(self) -> bool:
        return len(self.exit_codes) < len(self.shards)


class RunObserver:
    """Is notified of what happens in a run; `terminal_ui.py` shows it."""

    def on_plan(self, cycle: Cycle) -> None:
        """After every plan; `cycle` has its status."""

    def on_event(self, cycle: str, event: Event) -> None:
        """A transition of the cycle of that name."""

    def on_notice(self, text: str) -> None:
        """Something the user should be told."""

    def tick(self) -> None:
        """Several times a second."""


class Executor:
    """One cycle of a run: carries out its plans with processes of the run's forkserver (`runner.py`)."""

    def __init__(
        self,
        root: Path,
        cycle: Cycle,
        observer: RunObserver,
        *,
        secrets: Path | None = None,
        threads: int = 1,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.root = root.resolve()
        self.cycle = cycle
        self.observer = observer
        self.secrets = secrets
        self.threads = threads
        self.now = now
        self.state = StateFile(self.root, cycle.metadata.name)
        self.approvals = Approvals(self.root, cycle.metadata.name)
        self.attempts: dict[AttemptKey, LocalAttempt] = {}
        self.failure_exit_code = 0
        self.forkserver: ForkserverClient | None = None
        """Where stages are started; the run sets it, and replaces it after a crash."""
        self.gpus = Gpus()
        """Of this computer; the run sets them."""
        self.done = False
        """Whether the cycle has ended, or (after `leave`) all its stages have checkpointed."""
        self._leaving = False
        self._suspend = self.root / paths.cycle(cycle.metadata.name) / paths.SUSPEND
        self._suspend.unlink(missing_ok=True)  # asked of an earlier run

    @property
    def phase(self) -> Phase:
        """Of the cycle, by its last plan."""
        return self.cycle.status.phase

    @property
    def suspended(self) -> bool:
        """Whether `medgr2 suspend` asked this run to stop the cycle."""
        return self._suspend.exists()

    def leave(self) -> None:
        """Checkpoint and stop; a second call kills."""
        if self._leaving:
            for attempt in self.attempts.values():
                self._signal(attempt, signal.SIGKILL)
        self._leaving = True

    # -- reconcile -------------------------------------------------------------------------------------------------

    def reconcile(self, admit: Callable[[JobCreate], bool]) -> float | None:
        """Observe, plan, and apply in the contract's order: status, deletes, creates, events.

        Args:
            admit: whether an attempt may start now. One that may not is skipped: the planner plans it again.

        Returns:
            Seconds until the next call, whatever happens; None: only when something changes.
        """
        plan = planner.plan(self._effective_cycle(), self._observe(), self.now())
        changed = plan.status != self.cycle.status
        self.cycle = self.cycle.model_copy(update={"status": plan.status})
        if changed or plan.creates or plan.deletes:
            self.state.save(self.cycle)
        for delete in plan.deletes:
            self._delete(delete)
        for attempt in self.attempts.values():
            self._start_waiting(attempt)
        for create in plan.creates:
            if create.key in self.attempts:  # created just before a crash of this loop
                continue
            if self._gpus_of(create) <= len(self.gpus.free) and admit(create):
                self._create(create)
        for event in plan.events:
            self.observer.on_event(self.cycle.metadata.name, event)
        self.observer.on_plan(self.cycle)
        self.done = self._at_end(plan)
        return plan.requeue_after

    def _effective_cycle(self) -> Cycle:
        """With what `medgr2 approve` let go on. Leaving, or being asked by `medgr2 suspend`, is a
        suspension that the state file does not record: the next run resumes."""
        spec = self.cycle.spec
        if approved := self.approvals.load():
            spec = spec.model_copy(update={"approved": [*spec.approved, *approved]})
        if self._leaving or self.suspended:
            spec = spec.model_copy(update={"suspend": True})
        return self.cycle.model_copy(update={"spec": spec})

    def _observe(self) -> Observed:
        jobs = [self._observe_attempt(attempt) for attempt in self.attempts.values()]
        jobs += self._left_by_earlier_run()
        pods = [
            ObservedPod(name=name, key=key, terminating=attempt.kill_at is not None)
            for key, attempt in self.attempts.items()
            for name in attempt.shards
            if name not in attempt.exit_codes and name not in attempt.waiting
        ]
        return Observed(jobs=tuple(jobs), pods=tuple(pods))

    def _observe_attempt(self, attempt: LocalAttempt) -> ObservedJob:
        create = attempt.create
        job = ObservedJob(
            key=create.key,
            name=create.name,
            uid=attempt.uid,
            state=JobState.RUNNING,
            deleting=attempt.kill_at is not None,
            started=attempt.started,
            progress=self._progress(attempt) if attempt.alive else None,
        )
        if attempt.alive:
            return job
        return self._finished(job, attempt.shards, attempt.exit_codes, attempt.finished)

    def _finished(
        self, job: ObservedJob, shards: Sequence[str], codes: dict[str, int], finished: datetime | None
    ) -> ObservedJob:
        """An ended attempt with its result: that of its worst shard, or the shards' digests combined."""
        results = {name: self._result(name) for name in shards}
        bad = [name for name in shards if codes[name] != ExitCode.OK]
        if bad:
            failed = bad[worst([codes[name] for name in bad])]
            result = results[failed]
            if codes[failed] != ExitCode.CHECKPOINTED:
                self.failure_exit_code = codes[failed]
            return replace(
                job,
                state=JobState.FAILED,
                exit_code=codes[failed],
                finished=finished,
                result=result,
                message=result.message if result else "",
            )
        return replace(
            job,
            state=JobState.SUCCEEDED,
            exit_code=0,
            finished=finished,
            result=combine([results[name] for name in shards]),
        )

    def _left_by_earlier_run(self) -> list[ObservedJob]:
        """Attempts of an earlier run that left a result; the run lock guarantees that none still runs."""
        jobs = []
        for stage in self.cycle.status.stages:
            key = AttemptKey(stage.iteration, stage.name, stage.token, stage.attempt)
            if stage.state not in _UNFINISHED or stage.attempt == 0 or key in self.attempts:
                continue
            count = max(1, self.cycle.spec.stage(stage.name).shards)
            names = [self._shard_name(key, index) for index in range(count)]
            codes = {name: result.exit_code for name in names if (result := self._result(name))}
            if len(codes) == len(names):
                job = ObservedJob(
                    key=key,
                    name=stage.job_name,
                    uid=stage.job_uid or "earlier-run",
                    state=JobState.RUNNING,
                    started=stage.start_time,
                )
                jobs.append(self._finished(job, names, codes, self.now()))
        return jobs

    # -- apply -----------------------------------------------------------------------------------------------------

    def _create(self, create: JobCreate) -> None:
        names = [self._shard_name(create.key, index) for index in range(create.shards)]
        for name in names:
            self._result_path(name).unlink(missing_ok=True)
        attempt = LocalAttempt(create, uuid.uuid4().hex[:12], self.now(), names, [*names])
        self.attempts[create.key] = attempt
        self._start_waiting(attempt)

    def _start_waiting(self, attempt: LocalAttempt) -> None:
        """Starts the shards that GPUs are free for, each with its own."""
        create, needed = attempt.create, self._gpus_of(attempt.create)
        while attempt.waiting and attempt.kill_at is None:
            name = attempt.waiting[0]
            visible = self.gpus.take(self._process(name), needed)
            if visible is None:
                return
            attempt.waiting.pop(0)
            shard = Shard(index=attempt.shards.index(name), count=create.shards)
            request = create.request.model_copy(update={"shard": shard, "threads": self.threads})
            env = {
                REQUEST_ENV: request.model_dump_json(by_alias=True, exclude_none=True),
                RESULT_PATH_ENV: str(self._result_path(name)),
                WORKSPACE_ENV: str(self.root),
                SECRETS_ENV: str(self.secrets.resolve()) if self.secrets else "",
                **visible,
            }
            if definition(create.key.name).fetches:  # unless the user forbids it
                env["HF_HUB_OFFLINE"] = os.environ.get("HF_HUB_OFFLINE", "0")
            if not request.collect:
                env |= self._distributed_env(create, visible)
            assert self.forkserver is not None
            log = self.root / paths.log(self.cycle.metadata.name, name)
            self.forkserver.start(self._process(name), env, log)

    def _gpus_of(self, create: JobCreate) -> int:
        """GPUs of this computer that each shard of an attempt gets: one for each of its processes."""
        request = create.request
        # a student of the loop generates in the process of its stage
        computes = definition(create.key.name).computes or "student" in request.inputs
        if not computes or request.collect or not self.gpus.devices:
            return 0
        shared = share(self.cycle.spec, create.key.name)
        return min(shared.processes + shared.server, len(self.gpus.devices))

    def _distributed_env(self, create: JobCreate, visible: Mapping[str, str]) -> dict[str, str]:
        """Environment of a training in several processes, and of one that a vLLM samples for. What the spec asks of a
        cluster's GPUs is not here for certain: then there is a process for each GPU that is, unless the spec says how
        many it wants."""
        spec, name, held = self.cycle.spec, create.key.name, self._gpus_of(create)
        settings, shared = spec.stage(name), share(spec, name, held or None)
        if not held or shared.gpus == 0:  # no vLLM, or it needs none
            processes, env = settings.num_proc_per_node or max(1, held), {}
        else:
            devices = visible[VISIBLE].split(",")
            first, last = devices[: held - shared.server], devices[held - shared.server :]
            processes = shared.processes
            env = {VISIBLE: ",".join(first), VLLM_GPUS_ENV: ",".join(last) if shared.served else VLLM_NO_GPUS}
        count = {NUM_PROC_PER_NODE_ENV: str(processes)} if processes > 1 else {}
        return {**env, **count, **({DEEPSPEED_ENV: str(settings.deepspeed)} if settings.deepspeed else {})}

    def _delete(self, delete: JobDelete) -> None:
        attempt = self.attempts.get(delete.key)
        if attempt is not None and attempt.alive:
            if attempt.kill_at is None:
                attempt.kill_at = time.monotonic() + self.cycle.spec.template.termination_grace_period_seconds
                self._signal(attempt, signal.SIGTERM)
                while attempt.waiting:
                    self._ended(attempt, attempt.waiting.pop(), ExitCode.SIGTERM)  # never started
            return
        self.attempts.pop(delete.key, None)
        for index in range(max(1, self.cycle.spec.stage(delete.key.name).shards)):
            self._result_path(self._shard_name(delete.key, index)).unlink(missing_ok=True)

    def kill_overdue(self) -> None:
        """Kills the processes whose grace period is over."""
        for attempt in self.attempts.values():
            if attempt.alive and attempt.kill_at is not None and time.monotonic() > attempt.kill_at:
                self._signal(attempt, signal.SIGKILL)

    def record_exit(self, exited: Exited) -> None:
        """Records how a process ended, if it is one of this cycle's."""
        for attempt in self.attempts.values():
            for name in attempt.shards:
                if exited.name == self._process(name):
                    self._ended(attempt, name, exited.exit_code)

    def _ended(self, attempt: LocalAttempt, name: str, code: int) -> None:
        self.gpus.give_back(self._process(name))
        attempt.exit_codes[name] = code
        if not attempt.alive:
            attempt.finished = self.now()

    def handle_forkserver_crash(self) -> None:
        """After a crash of the forkserver, once its stages have ended: a result that an attempt left counts.

        An attempt that left none was ended from outside, and counts as that: were it forgotten, a stage that takes the
        forkserver with it would be started for ever.
        """
        for attempt in self.attempts.values():
            attempt.waiting.clear()
            for name in attempt.shards:
                if name not in attempt.exit_codes:
                    result = self._result(name)
                    self._ended(attempt, name, result.exit_code if result is not None else ExitCode.SIGTERM)

    def _signal(self, attempt: LocalAttempt, number: int) -> None:
        assert self.forkserver is not None
        for name in attempt.shards:
            if name not in attempt.exit_codes and name not in attempt.waiting:
                self.forkserver.signal(self._process(name), number)

    # -- files -----------------------------------------------------------------------------------------------------

    def _process(self, name: str) -> str:
        """Its name in the forkserver, where names are unique over all cycles."""
        return f"{self.cycle.metadata.name}/{name}"

    def _shard_name(self, key: AttemptKey, shard: int) -> str:
        return paths.attempt_name(key.iteration, key.name, key.token, key.attempt, shard)

    def _result_path(self, name: str) -> Path:
        return self.root / paths.result(self.cycle.metadata.name, name)

    def _result(self, name: str) -> StageResult | None:
        try:
            return StageResult.model_validate_json(self._result_path(name).read_text())
        except (FileNotFoundError, ValidationError):
            return None

    def _progress(self, attempt: LocalAttempt) -> Progress | None:
        """Of the slowest shard."""
        reports = []
        for name in attempt.shards:
            path = self.root / paths.progress(self.cycle.metadata.name, name)
            try:
                reports.append(Progress.model_validate_json(path.read_text()))
            except (FileNotFoundError, ValidationError):
                continue
        return min(reports, key=lambda p: p.step / p.total if p.total else 0.0) if reports else None

    def _at_end(self, plan: Plan) -> bool:
        if any(attempt.alive for attempt in self.attempts.values()) or plan.creates:
            return False
        if self._leaving:
            return True
        return plan.status.phase in (Phase.COMPLETE, Phase.FAILED, Phase.SUSPENDED, Phase.PAUSED) and not plan.deletes
