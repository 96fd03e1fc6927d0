"""A run: one or several cycles side by side in one workspace, with one stage server for all."""

from __future__ import annotations

import time
from collections.abc import Sequence

from medgr2_api import paths

from ..plan.types import JobCreate
from .executor import Executor, Listener
from .stage_server_client import ZYGOTE_COMMAND, Processes, ZygoteDied

_TICK = 0.5  # seconds between looks at progress when nothing happens


class Runner:
    """Runs cycles until each is at its end or told to leave.

    What two of them need is made once: while one makes an artifact, the other waits, and then finds it.
    """

    def __init__(
        self,
        executors: Sequence[Executor],
        listener: Listener,
        *,
        parallelism: int = 0,
        inherit: Sequence[int] = (),
        command: Sequence[str] = ZYGOTE_COMMAND,
    ) -> None:
        """
        Args:
            executors: of the cycles, those that go first at the front; all in one workspace.
            listener: is told what concerns no single cycle.
            parallelism: how many stages may run at the same time; 0: as many as can.
            inherit: descriptors that every stage keeps open.
            command: starts the stage server.
        """
        self.executors = list(executors)
        self.listener = listener
        self.parallelism = parallelism
        self._inherit, self._command = inherit, command

    def run(self) -> None:
        """Returns when all cycles are done, each in its phase; the stage server is gone then."""
        self._start_zygote()
        try:
            while unfinished := [executor for executor in self.executors if not executor.done]:
                try:
                    looks = [executor.step(self._admits) for executor in unfinished]
                    if not all(executor.done for executor in unfinished):
                        self._wait(min((look for look in looks if look is not None), default=_TICK))
                except ZygoteDied as error:
                    self._bury(error)
        finally:
            self._processes.close()

    def leave(self) -> None:
        """All cycles checkpoint and stop; a second call kills."""
        for executor in self.executors:
            executor.leave()

    def _admits(self, create: JobCreate) -> bool:
        """Whether there is room for the attempt, and nobody makes the same artifact."""
        alive = [attempt for executor in self.executors for attempt in executor.attempts.values() if attempt.alive]
        if self.parallelism and len(alive) >= self.parallelism:
            return False
        wanted = (create.key.name, create.request.input_hash)
        return wanted not in {(other.create.key.name, other.create.request.input_hash) for other in alive}

    def _wait(self, requeue_after: float) -> None:
        """Sleeps until a stage ends or a planner wants to look again; keeps the view and the kill clock going."""
        deadline = time.monotonic() + min(_TICK, requeue_after)
        while True:
            self.listener.tick()
            for executor in self.executors:
                executor.kill_overdue()
            ended = self._processes.wait(min(0.1, max(0.0, deadline - time.monotonic())))
            for exited in ended:
                for executor in self.executors:
                    executor.note_exit(exited)
            if ended or time.monotonic() >= deadline:
                return

    def _bury(self, error: ZygoteDied) -> None:
        """The zygote was killed. The kernel asked its stages to checkpoint: wait for them, then start another."""
        self.listener.on_notice(f"{error}; starting another")
        grace = max(executor.cycle.spec.template.termination_grace_period_seconds for executor in self.executors)
        self._processes.wait_for_orphans(grace)
        self._processes.close()
        for executor in self.executors:
            executor.bury()
        self._start_zygote()

    def _start_zygote(self) -> None:
        first = self.executors[0]
        log = first.root / paths.log(first.cycle.metadata.name, "zygote")
        self._processes = Processes(log, self._inherit, self._command)
        for executor in self.executors:
            executor.processes = self._processes
