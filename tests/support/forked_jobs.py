"""The modules of the jobs that commands start, forked from a process that has imported most of what they need."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from medgr2_operator.cli import jobs_process
from tests.support.fork_runner import ForkedProgram


@pytest.fixture
def forked_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """`jobs_process.run` and `.output` start no Python anew, which is a second of imports; what is unpacked does."""
    there = {name: getattr(subprocess, name) for name in ("Popen", "PIPE", "CompletedProcess")}
    monkeypatch.setattr(jobs_process, "subprocess", SimpleNamespace(run=_run, **there))


def _run(
    command: Sequence[str], *, input: bytes = b"", capture_output: bool = False, check: bool = False
) -> subprocess.CompletedProcess[bytes]:
    """As `subprocess.run`, for `python -m MODULE ARGUMENTS`."""
    python, option, module, *arguments = command
    assert (python, option, check) == (sys.executable, "-m", False)
    if input:
        return subprocess.run(command, input=input, capture_output=capture_output, check=False)
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = ForkedProgram(partial(_main, module), arguments, environment=os.environ, out=out, err=err)
        said = process.communicate()
        code = process.wait()
    if capture_output:
        return subprocess.CompletedProcess(command, code, *said)
    for number, text in enumerate(said, 1):
        os.write(number, text)
    return subprocess.CompletedProcess(command, code)


def _main(module: str) -> None:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
