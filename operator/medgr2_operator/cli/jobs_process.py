"""Modules of the jobs, each run in a process of its own: the command line imports nothing of theirs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import NoReturn

from .errors import CommandError


def command(module: str, *arguments: str) -> list[str]:
    """The command line of a module of medgr2_jobs."""
    return [sys.executable, "-m", f"medgr2_jobs.{module}", *arguments]


def run(module: str, *arguments: str) -> int:
    """Runs a module on this terminal; returns its exit code."""
    return subprocess.run(command(module, *arguments), check=False).returncode


def output(module: str, *arguments: str, stdin: bytes = b"") -> bytes:
    """What a module writes to stdout.

    Raises:
        CommandError: it failed; the message is the last line of its stderr, the exit code its own.
    """
    done = subprocess.run(command(module, *arguments), input=stdin, capture_output=True, check=False)
    if done.returncode:
        raise failure(done.stderr, done.returncode)
    return done.stdout


def become(module: str, *arguments: str, environment: Mapping[str, str]) -> NoReturn:
    """This process becomes the module's, so that signals reach it and its exit code is ours."""
    argv = command(module, *arguments)
    sys.stdout.flush()
    os.execve(argv[0], argv, {**os.environ, **environment})


def require_parquet(name: str) -> None:
    """
    Args:
        name: of the command that reads it.

    Raises:
        CommandError: nothing here reads parquet.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise CommandError(f"{name} reads parquet, which needs the jobs' packages: pip install 'medgr2[jobs]'")


def failure(stderr: bytes, code: int) -> CommandError:
    """How a command ends whose module failed."""
    lines = stderr.decode(errors="replace").strip().splitlines()
    return CommandError(lines[-1] if lines else f"exit code {code}", code)
