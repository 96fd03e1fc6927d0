"""One run per workspace. The lock is inherited by every stage, so it is free only when the last of them has ended."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from medgr2_api import paths
from medgr2_api.stage_contract import ExitCode

_LONGEST = 1 << 20  # bytes of the lock's content


class WorkspaceBusy(Exception):
    """Another run has the workspace."""

    exit_code = ExitCode.USAGE

    def __init__(self, pid: int) -> None:
        super().__init__(
            f"another `medgr2 run` (pid {pid}) is working in this workspace; wait for it, or stop it with Ctrl-C"
        )
        self.pid = pid


class RunLock:
    """An exclusive flock on `<workspace>/run.lock`, with the holder's pid and the names of its cycles inside.

    A flock belongs to the open file, not to the process: whoever inherits the descriptor keeps it. So after a
    `kill -9` of the run the next one waits until the orphaned stages have written their checkpoints.
    """

    def __init__(
        self, root: Path, waiting: Callable[[int], None], patience: float = 600.0, cycles: Sequence[str] = ()
    ) -> None:
        self.path = root / paths.LOCK
        self._waiting = waiting
        self._patience = patience
        self._cycles = cycles
        self.fileno = -1

    def __enter__(self) -> RunLock:
        """
        Raises:
            WorkspaceBusy: the holder is alive, or the stages it left behind do not end.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.fileno = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + self._patience
        notified = False
        while not self._try():
            pid = self._holder()
            if _alive(pid) or time.monotonic() > deadline:
                os.close(self.fileno)
                raise WorkspaceBusy(pid)
            if not notified:
                self._waiting(pid)
                notified = True
            time.sleep(0.2)
        os.ftruncate(self.fileno, 0)
        os.pwrite(self.fileno, " ".join([str(os.getpid()), *self._cycles]).encode() + b"\n", 0)
        os.fsync(self.fileno)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        os.close(self.fileno)

    def _try(self) -> bool:
        try:
            fcntl.flock(self.fileno, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _holder(self) -> int:
        return _parse(os.pread(self.fileno, _LONGEST, 0))[0]


def holder(root: Path, cycle: str = "") -> int | None:
    """The pid of the run that has the workspace, and works on this cycle; None: there is none."""
    try:
        with (root / paths.LOCK).open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back with the file
    except FileNotFoundError:
        return None
    except BlockingIOError:
        pid, cycles = _parse((root / paths.LOCK).read_bytes())
        return pid if _alive(pid) and (not cycle or cycle in cycles) else None
    return None


def _parse(content: bytes) -> tuple[int, list[str]]:
    """The pid, 0 where there is none, and the names of the cycles."""
    pid, *cycles = content.decode(errors="replace").split() or ["0"]
    return (int(pid) if pid.isascii() and pid.isdecimal() else 0), cycles


def _alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
