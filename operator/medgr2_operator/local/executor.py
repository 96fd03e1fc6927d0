"""The planner over processes: what the operator does with Jobs, this does with subprocesses and `state.json`."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from medgr2_api import paths
from medgr2_api.cycle import Cycle
from medgr2_api.stage_contract import (
    DEEPSPEED_ENV,
    NUM_PROC_PER_NODE_ENV,
    REQUEST_ENV,
    RESULT_PATH_ENV,
    SECRETS_ENV,
    WORKSPACE_ENV,
    ExitCode,
    Progress,
    Shard,
    StageName,
    StageResult,
)
from medgr2_api.status import AttemptState, Phase

from ..plan.planner import plan
from ..plan.shard_results import combine, worst
from ..plan.types import AttemptKey, Event, JobCreate, JobDelete, JobState, Observed, ObservedJob, ObservedPod, Plan
from .stage_server_client import Exited, Processes
from .state import StateFile

_UNFINISHED = (AttemptState.PENDING, AttemptState.RUNNING, AttemptState.TERMINATING)


@dataclass
class Attempt:
    """An attempt whose processes this executor started."""

    create: JobCreate
    uid: str
    started: datetime
    shards: list[str]
    """Names of its logs and results, one per shard."""
    exit_codes: dict[str, int] = field(default_factory=dict)
    finished: datetime | None = None
    kill_at: float | None = None
    """Monotonic time of the SIGKILL after a SIGTERM."""

    @property
    def alive(self) -> bool:
        return len(self.exit_codes) < len(self.shards)


class Listener:
    """What the terminal view is told; see `view.py`."""

    def on_plan(self, cycle: Cycle) -> None:
        """After every plan, with its status."""

    def on_event(self, cycle: str, event: Event) -> None:
        """A transition of the cycle of that name."""

    def on_notice(self, text: str) -> None:
        """Something the user should know once."""

    def tick(self) -> None:
        """Several times a second."""


class Executor:
    """One cycle of a run: what its planner wants is done by the processes that the run gives it (`runner.py`)."""

    def __init__(
        self,
        root: Path,
        cycle: Cycle,
        listener: Listener,
        *,
        secrets: Path | None = None,
        threads: int = 1,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.root = root.resolve()
        self.cycle = cycle
        self.listener = listener
        self.secrets = secrets
        self.threads = threads
        self.now = now
        self.state = StateFile(self.root, cycle.metadata.name)
        self.attempts: dict[AttemptKey, Attempt] = {}
        self.failure_exit_code = 0
        self.processes: Processes | None = None
        """Where stages are started; the run sets it, and sets another when this one has died."""
        self.done = False
        """Whether the cycle is at its end, or (after `leave`) all its stages have checkpointed."""
        self._leaving = False

    @property
    def phase(self) -> Phase:
        """Of the cycle, by its last plan."""
        return self.cycle.status.phase

    def leave(self) -> None:
        """Checkpoint and stop; a second call kills."""
        if self._leaving:
            for attempt in self.attempts.values():
                self._signal(attempt, signal.SIGKILL)
        self._leaving = True

    # -- one look at the world -------------------------------------------------------------------------------------

    def step(self, admits: Callable[[JobCreate], bool]) -> float | None:
        """Observe, plan, and apply in the contract's order: status, deletes, creates, events.

        Args:
            admits: whether an attempt may start now. What may not is passed over: the planner asks for it again.

        Returns:
            Seconds until the planner wants to look again without being woken; None: only when something changes.
        """
        made = plan(self._seen_cycle(), self._observe(), self.now())
        changed = made.status != self.cycle.status
        self.cycle = self.cycle.model_copy(update={"status": made.status})
        if changed or made.creates or made.deletes:
            self.state.save(self.cycle)
        for delete in made.deletes:
            self._delete(delete)
        for create in made.creates:
            if create.key not in self.attempts and admits(create):  # there: created just before a crash of this loop
                self._create(create)
        for event in made.events:
            self.listener.on_event(self.cycle.metadata.name, event)
        self.listener.on_plan(self.cycle)
        self.done = self._at_end(made)
        return made.requeue_after

    def _seen_cycle(self) -> Cycle:
        """Leaving is a suspension that the file does not record: the next run resumes."""
        if not self._leaving:
            return self.cycle
        return self.cycle.model_copy(update={"spec": self.cycle.spec.model_copy(update={"suspend": True})})

    def _observe(self) -> Observed:
        jobs = [self._observe_attempt(attempt) for attempt in self.attempts.values()]
        jobs += self._left_behind()
        pods = [
            ObservedPod(name=name, key=key, terminating=attempt.kill_at is not None)
            for key, attempt in self.attempts.items()
            for name in attempt.shards
            if name not in attempt.exit_codes
        ]
        return Observed(jobs=tuple(jobs), pods=tuple(pods))

    def _observe_attempt(self, attempt: Attempt) -> ObservedJob:
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

    def _left_behind(self) -> list[ObservedJob]:
        """Attempts of an earlier run that left a result; the run lock guarantees that none still runs."""
        found = []
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
                found.append(self._finished(job, names, codes, self.now()))
        return found

    # -- doing -----------------------------------------------------------------------------------------------------

    def _create(self, create: JobCreate) -> None:
        names = [self._shard_name(create.key, index) for index in range(create.shards)]
        attempt = Attempt(create, uuid.uuid4().hex[:12], self.now(), names)
        self.attempts[create.key] = attempt
        for index, name in enumerate(names):
            request = create.request.model_copy(
                update={"shard": Shard(index=index, count=create.shards), "threads": self.threads}
            )
            self._result_path(name).unlink(missing_ok=True)
            env = {
                REQUEST_ENV: request.model_dump_json(by_alias=True, exclude_none=True),
                RESULT_PATH_ENV: str(self._result_path(name)),
                WORKSPACE_ENV: str(self.root),
                SECRETS_ENV: str(self.secrets.resolve()) if self.secrets else "",
            }
            if create.key.name is StageName.PREPARE:  # the one stage that may fetch, unless the user forbids it
                env["HF_HUB_OFFLINE"] = os.environ.get("HF_HUB_OFFLINE", "0")
            if not request.collect:
                env |= self._several(create.key.name)
            assert self.processes is not None
            log = self.root / paths.log(self.cycle.metadata.name, name)
            self.processes.start(self._process(name), env, log)

    def _several(self, stage: StageName) -> dict[str, str]:
        """What a training in several processes is told."""
        settings = self.cycle.spec.stage(stage)
        count = {NUM_PROC_PER_NODE_ENV: str(settings.num_proc_per_node)} if settings.num_proc_per_node > 1 else {}
        return {**count, **({DEEPSPEED_ENV: str(settings.deepspeed)} if settings.deepspeed else {})}

    def _delete(self, delete: JobDelete) -> None:
        attempt = self.attempts.get(delete.key)
        if attempt is not None and attempt.alive:
            if attempt.kill_at is None:
                attempt.kill_at = time.monotonic() + self.cycle.spec.template.termination_grace_period_seconds
                self._signal(attempt, signal.SIGTERM)
            return
        self.attempts.pop(delete.key, None)
        for index in range(max(1, self.cycle.spec.stage(delete.key.name).shards)):
            self._result_path(self._shard_name(delete.key, index)).unlink(missing_ok=True)

    def kill_overdue(self) -> None:
        """Kills what was asked to stop and has used up its grace period."""
        for attempt in self.attempts.values():
            if attempt.alive and attempt.kill_at is not None and time.monotonic() > attempt.kill_at:
                self._signal(attempt, signal.SIGKILL)

    def note_exit(self, exited: Exited) -> None:
        """Takes down how a process ended, if it is one of this cycle's."""
        for attempt in self.attempts.values():
            for name in attempt.shards:
                if exited.name == self._process(name):
                    attempt.exit_codes[name] = exited.exit_code
                    if not attempt.alive:
                        attempt.finished = self.now()

    def bury(self) -> None:
        """The zygote died, and its stages have ended: an attempt counts by the result it left, if any."""
        for key, attempt in list(self.attempts.items()):
            for name in attempt.shards:
                result = self._result(name)
                if name not in attempt.exit_codes and result is not None:
                    attempt.exit_codes[name] = result.exit_code
            attempt.finished = attempt.finished or self.now()
            if attempt.alive:  # no word from it: to the planner it vanished
                del self.attempts[key]

    def _signal(self, attempt: Attempt, number: int) -> None:
        assert self.processes is not None
        for name in attempt.shards:
            if name not in attempt.exit_codes:
                self.processes.signal(self._process(name), number)

    # -- files -----------------------------------------------------------------------------------------------------

    def _process(self, name: str) -> str:
        """A name that no other cycle's stage has."""
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

    def _progress(self, attempt: Attempt) -> Progress | None:
        """Of the slowest shard."""
        found = []
        for name in attempt.shards:
            path = self.root / paths.progress(self.cycle.metadata.name, name)
            try:
                found.append(Progress.model_validate_json(path.read_text()))
            except (FileNotFoundError, ValidationError):
                continue
        return min(found, key=lambda p: p.step / p.total if p.total else 0.0) if found else None

    def _at_end(self, made: Plan) -> bool:
        if any(attempt.alive for attempt in self.attempts.values()) or made.creates:
            return False
        if self._leaving:
            return True
        return made.status.phase in (Phase.COMPLETE, Phase.FAILED, Phase.SUSPENDED, Phase.PAUSED) and not made.deletes
