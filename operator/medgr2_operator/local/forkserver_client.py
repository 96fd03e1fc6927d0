"""Stages as processes: the client of the forkserver (`medgr2_jobs.runner.forkserver`), which forks them."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_SHOWN_LINES = 5
FORKSERVER_COMMAND = (sys.executable, "-m", "medgr2_jobs.runner.forkserver")
#: Threads of OpenMP spin while they wait for each other, by default for milliseconds: stages that run side by side,
#: with more threads than there are cores, then take up to six times as long (docs/measurements.md). So they spin less.
SPIN = {"GOMP_SPINCOUNT": "3000"}
_SETTINGS = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Exited:
    """A stage's process has ended. `exit_code` is 128 + n when signal n ended it."""

    name: str
    exit_code: int


class ForkserverCrashed(Exception):
    """The forkserver ended by itself; the kernel has asked its stages to checkpoint."""

    def __init__(self, message: str, *, ready: bool, signalled: bool) -> None:
        super().__init__(message)
        self.ready = ready
        """It had come up; False: it ended while it imported the libraries."""
        self.signalled = signalled
        """It was killed; False: it ended by itself, and would again."""


class ForkserverUnusable(Exception):
    """The forkserver does not come up, however often it is started."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ForkserverClient:
    """Starts stages and tells which have ended."""

    def __init__(self, log: Path, inherit: Sequence[int], command: Sequence[str] = FORKSERVER_COMMAND) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._events: queue.Queue[Exited | None] = queue.Queue()
        self._pids: dict[str, int] = {}
        self._starting: set[str] = set()
        self._signals: dict[str, int] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._ready = False
        with log.open("ab") as stderr:
            self._server = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                pass_fds=tuple(inherit),
                start_new_session=True,  # Ctrl-C is handled here
                env={**SPIN, **os.environ, **_SETTINGS},
            )
        self.log = log
        self._reader = threading.Thread(target=self._read, name="forkserver", daemon=True)
        self._reader.start()

    def start(self, name: str, env: Mapping[str, str], log: Path) -> None:
        """Starts a stage; its stdout and stderr go to `log`.

        Raises:
            ForkserverCrashed: there is nothing to start it with.
        """
        request = json.dumps({"id": name, "env": dict(env), "log": str(log)}) + "\n"
        with self._lock:
            self._starting.add(name)
        assert self._server.stdin is not None
        try:
            self._server.stdin.write(request.encode())
            self._server.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise self._crashed() from None

    def signal(self, name: str, number: int) -> None:
        """Sends a signal to a stage (at once, or as soon as its process exists)."""
        with self._lock:
            pid = self._pids.get(name)
            if pid is None:
                if name in self._starting:
                    self._signals[name] = number
                return
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def pid(self, name: str) -> int | None:
        """The process of a running stage."""
        return self._pids.get(name)

    def wait(self, timeout: float) -> list[Exited]:
        """The stages that ended; waits up to `timeout` seconds for the first.

        Raises:
            ForkserverCrashed: no more stages can be started.
        """
        ended: list[Exited] = []
        with contextlib.suppress(queue.Empty):
            while True:
                event = self._events.get(timeout=0 if ended else max(timeout, 0.001))
                if event is None:
                    raise self._crashed()
                ended.append(event)
        return ended

    def wait_for_orphans(self, patience: float) -> None:
        """After a crash: waits until the stages have ended, and kills those that are left after `patience` seconds."""
        deadline = time.monotonic() + patience
        for pid in list(self._pids.values()):
            while _exists(pid):
                if time.monotonic() > deadline:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.05)

    def close(self) -> None:
        """Ends the forkserver; stages that still run are asked to checkpoint first."""
        self._closed = True
        if self._server.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._server.stdin.close()
        try:
            self._server.wait(timeout=90)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        self._reader.join(timeout=5)

    def _read(self) -> None:
        assert self._server.stdout is not None
        for line in self._server.stdout:
            reply = json.loads(line)
            self._ready = True
            name = reply.get("id")
            if name is None:
                continue
            with self._lock:
                if "pid" in reply:
                    self._starting.discard(name)
                    self._pids[name] = reply["pid"]
                    pending = self._signals.pop(name, None)
                    if pending is not None:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(reply["pid"], pending)
                    continue
                self._pids.pop(name, None)
            self._events.put(Exited(name, reply["exitCode"]))
        if not self._closed:
            self._events.put(None)

    def _crashed(self) -> ForkserverCrashed:
        try:
            code: int | None = self._server.wait(timeout=5)
        except subprocess.TimeoutExpired:  # it closed its output and still runs
            code = None
        tail = self.log.read_text(errors="replace").strip().splitlines()[-_SHOWN_LINES:]
        ended = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        message = f"the process that starts stages ended ({ended}); its log {self.log} ends with:"
        return ForkserverCrashed("\n  ".join([message, *tail]), ready=self._ready, signalled=code is None or code < 0)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:  # an orphan's zombie waits for init, which in a container may never reap it
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, IndexError):
        return False
