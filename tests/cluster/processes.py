"""Processes that belong to a run folder: started with a log, recorded by pid, stopped by that record only.

A record also says when the process started, so that a pid that the kernel gave to somebody else in the meantime is
never touched. Whoever finds the folder later (another process, the next run after a crash) can stop them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

TAIL_LINES = 25
KILL_SECONDS = 30.0
#: Start times are counted from the boot, whose own time may move by about this much when the clock is set, in seconds.
CLOCK_DRIFT = 2.0
#: For Go's programs: an eighth of the API server's processor time is collecting garbage, and memory there is.
_FRUGAL = {"GOGC": "400"}


class ProcessError(RuntimeError):
    """A component did not come up; the message ends with the end of its log."""


def identity(pid: int) -> dict[str, Any] | None:
    """What tells this process from a later one of the same pid; None when there is none."""
    try:
        return {"pid": pid, "created": psutil.Process(pid).create_time()}
    except psutil.Error:
        return None


def is_alive(record: Mapping[str, Any]) -> bool:
    """Whether the recorded process still runs, and not another one under its pid."""
    return _exists(record) and not _is_zombie(record["pid"])


def _exists(record: Mapping[str, Any]) -> bool:
    running = identity(record["pid"])
    return running is not None and abs(running["created"] - record["created"]) < CLOCK_DRIFT


def _is_zombie(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return True


class Processes:
    """The processes of one run folder, in the order of their start."""

    def __init__(self, folder: Path) -> None:
        self._pids = folder / "pids"
        self._logs = folder / "logs"

    def start(self, name: str, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
        """Starts a process in a session of its own, so that Ctrl-C reaches it only through us."""
        for folder in (self._pids, self._logs):
            folder.mkdir(parents=True, exist_ok=True)
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**_FRUGAL, **os.environ, **(env or {})},
            )
        process.returncode = 0  # `stop` reaps it; Popen need not warn that it still runs
        record = identity(process.pid) or {"pid": process.pid, "created": time.time()}  # it may have ended already
        record = {**record, "program": str(command[0])}
        temporary = self._pids / f".{name}"
        temporary.write_text(json.dumps(record))
        temporary.replace(self._pids / f"{name}.json")

    def log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def tail(self, name: str) -> str:
        """The last lines of a process's log."""
        if not self.log(name).exists():
            return "(no log)"
        return "\n".join(self.log(name).read_text(errors="replace").splitlines()[-TAIL_LINES:])

    def records(self) -> dict[str, dict[str, Any]]:
        """What was started, oldest first."""
        records = {path.stem: json.loads(path.read_text()) for path in self._pids.glob("*.json")}
        return dict(sorted(records.items(), key=lambda item: item[1]["created"]))

    def alive(self, name: str) -> bool:
        record = self.records().get(name)
        return record is not None and is_alive(record)

    def wait(self, name: str, ready: Callable[[], bool], seconds: float) -> None:
        """Polls until `ready`; fails at once when the process ends, and at the deadline.

        Raises:
            ProcessError: it did not become ready.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            if not self.alive(name):
                raise ProcessError(f"{name} ended while it started; the end of {self.log(name)}:\n{self.tail(name)}")
            if time.monotonic() > deadline:
                raise ProcessError(
                    f"{name} was not ready after {seconds:.0f} s; the end of {self.log(name)}:\n{self.tail(name)}"
                )
            time.sleep(0.05)

    def stop(self, *names: str, seconds: float = 10) -> None:
        """Ends these processes, or all, the youngest first: SIGTERM, and after `seconds` SIGKILL.

        Raises:
            ProcessError: some survived; the others are gone.
        """
        records = self.records()
        survivors = []
        for name in names or tuple(reversed(records)):
            if name not in records:
                continue
            if _end(records[name], seconds):
                (self._pids / f"{name}.json").unlink(missing_ok=True)
            else:
                survivors.append(name)
        if survivors:
            raise ProcessError(f"survived SIGKILL: {', '.join(survivors)}")


def _end(record: Mapping[str, Any], seconds: float) -> bool:
    """Whether it is gone."""
    for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, KILL_SECONDS)):
        if is_alive(record):
            with contextlib.suppress(ProcessLookupError):
                os.kill(record["pid"], number)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if _is_gone(record):
                return True
            time.sleep(0.02)
    return False


def _is_gone(record: Mapping[str, Any]) -> bool:
    """Our own child is gone when it is reaped; somebody else's also when it only waits for that."""
    if not _exists(record):
        return True
    try:
        return os.waitpid(record["pid"], os.WNOHANG)[0] != 0
    except ChildProcessError:
        return not is_alive(record)
