"""A run: one or several cycles side by side in one workspace, with one forkserver for all."""

from __future__ import annotations

import time
from collections.abc import Sequence

from medgr2_api import paths
from medgr2_api.stage_contract import ExitCode

from ..plan.types import JobCreate
from .executor import Executor, RunObserver
from .forkserver_client import FORKSERVER_COMMAND, ForkserverClient, ForkserverCrashed, ForkserverUnusable
from .gpus import Gpus

_MAX_FAILED_STARTS = 3  # of a forkserver that something kills before it is ready
_TICK = 0.5  # seconds between two reads of the progress when nothing happens


class Runner:
    """Runs cycles until each has ended or was asked to leave.

    What two of them need is computed once: while one makes an artifact, the other waits for it and reuses it.
    """

    def __init__(
        self,
        executors: Sequence[Executor],
        observer: RunObserver,
        *,
        parallelism: int = 0,
        gpus: Sequence[str] = (),
        inherit: Sequence[int] = (),
        command: Sequence[str] = FORKSERVER_COMMAND,
    ) -> None:
        """
        Args:
            executors: of the cycles, those that go first at the front; all in one workspace.
            observer: is notified of what concerns no single cycle.
            parallelism: how many stages may run at the same time; 0: as many as can.
            gpus: of this computer, which the stages share out.
            inherit: file descriptors that every stage inherits.
            command: starts the forkserver.
        """
        self.executors = list(executors)
        self.observer = observer
        self.parallelism = parallelism
        self._inherit, self._command = inherit, command
        self._failed_starts = 0
        shared = Gpus(gpus)
        for executor in self.executors:
            executor.gpus = shared

    def run(self) -> None:
        """Returns when all cycles are done, each in its phase; the forkserver has ended then."""
        self._start_forkserver()
        try:
            while unfinished := [executor for executor in self.executors if not executor.done]:
                try:
                    requeues = [executor.reconcile(self._admit) for executor in unfinished]
                    if not all(executor.done for executor in unfinished):
                        self._wait(min((after for after in requeues if after is not None), default=_TICK))
                except ForkserverCrashed as error:
                    self._handle_forkserver_crash(error)
        finally:
            self._forkserver.close()

    def leave(self) -> None:
        """All cycles checkpoint and stop; a second call kills."""
        for executor in self.executors:
            executor.leave()

    def _admit(self, create: JobCreate) -> bool:
        """Whether parallelism allows the attempt, and no other one makes the same artifact."""
        alive = [attempt for executor in self.executors for attempt in executor.attempts.values() if attempt.alive]
        if self.parallelism and len(alive) >= self.parallelism:
            return False
        artifact = (create.key.name, create.request.input_hash)
        return artifact not in {(other.create.key.name, other.create.request.input_hash) for other in alive}

    def _wait(self, requeue_after: float) -> None:
        """Sleeps until a stage ends or a planner asks to be called again; kills what outlives its grace period."""
        deadline = time.monotonic() + min(_TICK, requeue_after)
        while True:
            self.observer.tick()
            for executor in self.executors:
                executor.kill_overdue()
            ended = self._forkserver.wait(min(0.1, max(0.0, deadline - time.monotonic())))
            for exited in ended:
                for executor in self.executors:
                    executor.record_exit(exited)
            if ended or time.monotonic() >= deadline:
                return

    def _handle_forkserver_crash(self, error: ForkserverCrashed) -> None:
        """The forkserver was killed, and the kernel has asked its stages to checkpoint: waits for them, then starts
        another one."""
        self._failed_starts = 0 if error.ready else self._failed_starts + 1
        if self._failed_starts and not error.signalled:  # what it cannot import now it cannot import the next time
            raise ForkserverUnusable(f"stages cannot be started: {error}", ExitCode.CONFIG) from error
        if self._failed_starts >= _MAX_FAILED_STARTS:
            raise ForkserverUnusable(
                f"stages cannot be started, tried {self._failed_starts} times: {error}", ExitCode.TEMPORARY
            ) from error
        self.observer.on_notice(f"{error}\nstarting another")
        grace = max(executor.cycle.spec.template.termination_grace_period_seconds for executor in self.executors)
        self._forkserver.wait_for_orphans(grace)
        self._forkserver.close()
        for executor in self.executors:
            executor.handle_forkserver_crash()
        self._start_forkserver()

    def _start_forkserver(self) -> None:
        first = self.executors[0]
        log = first.root / paths.log(first.cycle.metadata.name, "forkserver")
        self._forkserver = ForkserverClient(log, self._inherit, self._command)
        for executor in self.executors:
            executor.forkserver = self._forkserver
