"""Python programs by the hundred, forked from a process that has imported everything: each saves a second of imports.

What a program is, is not changed by it: its own process, environment, arguments, output and signals.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

#: Nothing that starts threads. Pytest is what the forked process takes for its main module.
PRELOAD = [
    "pytest",
    "pyarrow.parquet",
    "medgr2_jobs.runner.main",
    "medgr2_jobs.stages.generate",
    "medgr2_jobs.generate.providers.gemini_client",
    "medgr2_jobs.generate.providers.openai_client",
    "medgr2_operator.runtime.main",
    *(
        f"medgr2_operator.cli.{name}"
        for name in (
            "app",
            "connection",
            "logs",
            "results",
            "review",
            "run",
            "lifecycle",
            "lineage",
            "volume",
        )
    ),
]


def context(preload: Sequence[str]) -> Any:
    """Where to start processes that find these modules imported.

    There is one server to fork from, and it imports only when it starts. So another list takes another server; what the
    one before has forked must have ended, for nobody could tell how.
    """
    forkserver = multiprocessing.forkserver._forkserver
    forkserver_context = multiprocessing.get_context("forkserver")
    if list(preload) != forkserver._preload_modules:
        forkserver._stop()
        forkserver_context.set_forkserver_preload(list(preload))
    # before 3.13 the server learns sys.path from the environment only
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(dict.fromkeys(filter(None, sys.path)))):
        forkserver.ensure_running()
    return forkserver_context


class ForkedProgram:
    """A running program, with the words of `subprocess.Popen`."""

    def __init__(
        self,
        program: Callable[[], object],
        arguments: Sequence[str] = (),
        *,
        environment: Mapping[str, str],
        out: Path,
        err: Path | None = None,
    ) -> None:
        """Starts it.

        Args:
            program: an importable function; what it returns becomes the exit code, as with `sys.exit`.
            arguments: of its command line.
            environment: all of it.
            out: file that its standard output is appended to.
            err: the same for standard error; None: the same file.
        """
        self.out, self.err = out, err or out
        for path in (self.out, self.err):
            path.touch()
        call = (program, list(arguments), dict(environment), str(self.out), str(self.err))
        self._process: Any = context(PRELOAD).Process(target=_call, args=call)
        self._process.start()
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """-n: signal n ended it; None: it runs."""
        code: int | None = self._process.exitcode
        return code

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[bytes, bytes]:
        """What it said, once it has ended."""
        self.wait(timeout)
        return self.out.read_bytes(), self.err.read_bytes()

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _call(program: Callable[[], object], arguments: list[str], environment: dict[str, str], out: str, err: str) -> None:
    """In the fork: what a shell does."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    sys.argv = [program.__module__, *arguments]
    sys.exit(program())
