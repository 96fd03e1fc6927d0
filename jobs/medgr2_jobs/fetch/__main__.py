"""Fetches all that a cycle names, without running it: `python -m medgr2_jobs.fetch CYCLE.yaml --workspace DIR`.

What it leaves in `inputs/` may be copied to a site that has no network.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from medgr2_api import command_line, printable, redaction
from medgr2_api.cycle import Cycle
from medgr2_api.guarded_streams import raw
from medgr2_api.hashing import sha256_of
from medgr2_api.presets import resolve
from medgr2_api.stage_contract import CycleRef, ExitCode, StageRequest
from medgr2_api.stages import PREPARE, stage_parameters
from medgr2_api.stages.prepare import PrepareParameters
from medgr2_api.yaml_loader import CycleError, load_cycle

from ..errors import Checkpointed, StageError
from ..runner.context import StageContext
from . import local_path, pin_file, referenced_uris, remote_uri


class _Context(StageContext[PrepareParameters]):
    """Of no stage: progress goes to the terminal."""

    def progress(self, phase: str, step: int, total: int, **_: float) -> None:
        if sys.stderr.isatty() and total:
            text = printable.one_line(redaction.redact(phase))
            line = f"\r{text}: {step / total:.0%} of {_size(total)}\033[K"
            print(line, end="", file=raw(sys.stderr), flush=True)


def _context(cycle: Cycle, root: Path, stop: threading.Event) -> _Context:
    parameters = stage_parameters(resolve(cycle.spec), cycle.metadata.name, PREPARE.name, 0)
    assert isinstance(parameters, PrepareParameters)
    request = StageRequest(
        cycle=CycleRef(name=cycle.metadata.name, uid="fetch"),
        iteration=0,
        stage=PREPARE.name,
        input_hash=sha256_of("fetch"),
        parameters=parameters.dump(),
    )
    return _Context(request, parameters, root, stop=stop)


def fetch_all(ctx: StageContext[PrepareParameters]) -> int:
    """Fetches, or verifies, each URI, and says what it is; one that fails does not keep the others from being tried.

    Returns:
        The exit code: that of the first failure, or 0.
    """
    code = 0
    for uri, what, kind in dict.fromkeys(referenced_uris(ctx.parameters)):
        source = remote_uri(ctx.root, uri, kind)
        if source is None:
            print(f"{what}: {uri}: a path on the volume, nothing to fetch")
            continue
        try:
            local_path(ctx, uri, what, kind)
            folder = pin_file.folder_of(ctx.root, source, kind)
            pinned = pin_file.load(folder, source, kind)
        except Checkpointed:
            raise
        except StageError as error:
            print(f"\n{error}" if sys.stderr.isatty() else error, file=sys.stderr)
            code = code or int(error.exit_code)
            continue
        assert pinned is not None  # nothing removes it
        size = _size(sum(file.bytes for file in pinned.files))
        revision = f", revision {pinned.revision}" if pinned.revision else ""
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=raw(sys.stderr), flush=True)
        print(f"{what}: {uri}: {len(pinned.files)} files, {size}{revision}: {folder}")
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="medgr2 fetch", description="Fetch what a cycle names.")
    parser.add_argument("cycle", type=Path)
    parser.add_argument("--workspace", type=Path, required=True)
    options = parser.parse_args(arguments)
    stop, signals = threading.Event(), []

    def leave(number: int, _: FrameType | None) -> None:
        signals.append(number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    try:
        cycle = load_cycle(options.cycle)
    except CycleError as error:
        for problem in error.problems:
            print(f"{options.cycle}: {problem}", file=sys.stderr)
        return ExitCode.USAGE
    options.workspace.mkdir(parents=True, exist_ok=True)
    try:
        return fetch_all(_context(cycle, options.workspace.resolve(), stop))
    except Checkpointed:
        print("\nstopped; the same command goes on", file=sys.stderr)
        return 128 + signals[0]


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


if __name__ == "__main__":
    command_line.end(main)
