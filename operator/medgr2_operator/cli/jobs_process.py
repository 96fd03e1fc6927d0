"""Modules of the jobs, each run in a process of its own: the command line imports nothing of theirs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from medgr2_api.stage_contract import ExitCode

from .errors import CommandError
from .installation import install_command, missing
from .unpack import UNPACKING, Unpacker, refusal

_SHOWN = 6
_CHUNK = 1 << 20


def command(module: str, *arguments: str) -> list[str]:
    """The command line of a module of medgr2_jobs."""
    return [sys.executable, "-m", f"medgr2_jobs.{module}", *arguments]


def run(module: str, *arguments: str) -> int:
    """Runs a module on this terminal; returns its exit code."""
    try:
        code = subprocess.run(command(module, *arguments), check=False).returncode
    except KeyboardInterrupt:  # it had it, too, and has said so
        return 128 + signal.SIGINT
    return code if code >= 0 else 128 - code


def output(module: str, *arguments: str, stdin: bytes = b"") -> bytes:
    """What a module writes to stdout.

    Raises:
        CommandError: it failed; the message is the last line of its stderr, the exit code its own.
    """
    done = subprocess.run(command(module, *arguments), input=stdin, capture_output=True, check=False)
    if done.returncode:
        raise failure(done.stderr, done.returncode)
    return done.stdout


def unpacked(module: str, *arguments: str, workspace: Path, target: Path, what: str, replace: bool) -> dict[str, Any]:
    """Unpacks the archive that a module makes of a workspace on this computer, as `Volume.unpack` does on a cluster.

    Args:
        module: of medgr2_jobs.
        arguments: its.
        workspace: what it reads.
        target: what the folder or file will be called; it is there as a whole, or not at all.
        what: names it in messages.
        replace: what is there already.

    Returns:
        The summary that the module gives.

    Raises:
        CommandError: it failed, or the target cannot be written.
    """
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            command(module, *arguments, "--workspace", str(workspace)), stdout=subprocess.PIPE, stderr=stderr
        )
        assert process.stdout is not None
        try:
            with Unpacker(target) as unpacker:
                while chunk := process.stdout.read(_CHUNK):
                    unpacker.write(chunk)
                code = process.wait()
                stderr.seek(0)
                text = stderr.read()
                if code:
                    raise failure(text, code)
                return unpacker.end(text.decode(errors="replace"), replace=replace)
        except UNPACKING as error:
            raise refusal(what, error) from error
        finally:
            process.stdout.close()
            process.kill()
            process.wait()


def become(module: str, *arguments: str, environment: Mapping[str, str]) -> NoReturn:
    """This process becomes the module's, so that signals reach it and its exit code is ours."""
    argv = command(module, *arguments)
    sys.stdout.flush()
    os.execve(argv[0], argv, {**os.environ, **environment})


def require(name: str) -> None:
    """Looks once, before anything is started.

    Args:
        name: of the command that needs the jobs' packages.

    Raises:
        CommandError: some are not installed; the message has the command that installs them (exit 78).
    """
    if absent := missing("jobs"):
        shown = ", ".join(absent[:_SHOWN]) + (f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else "")
        raise CommandError(
            f"medgr2 {name} needs packages that are not installed ({shown}):\n  {install_command('jobs')}",
            ExitCode.CONFIG,
        )


def failure(stderr: bytes, code: int) -> CommandError:
    """How a command ends whose module failed."""
    lines = stderr.decode(errors="replace").strip().splitlines()
    return CommandError(lines[-1] if lines else f"exit code {code}", code)
