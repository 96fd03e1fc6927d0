"""Reading a cycle for a command: problems go to stderr, one line each, and end the command with exit code 2."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import typer

from medgr2_api.cycle import Cycle
from medgr2_api.stage_contract import ExitCode, StageName
from medgr2_api.unsupported import unsupported
from medgr2_api.yaml_loader import CycleError, Problem, load_cycle, locate


def load(file: Path, *, local: bool = False) -> Cycle:
    """The cycle in `file`, or the end of the command. `local`: it must also be what one computer can run."""
    try:
        cycle = load_cycle(file)
    except CycleError as error:
        fail(error.problems, file)
    problems = unsupported(cycle.spec, local=local)
    if problems:
        fail(locate(problems, file.read_text()), file)
    return cycle


def fail(problems: list[Problem], file: Path) -> None:
    """Prints the problems and ends the command."""
    for problem in problems:
        print(f"{file}: {problem}", file=sys.stderr)
    raise typer.Exit(ExitCode.USAGE)


def parse_stage(text: str, iterations: int) -> tuple[StageName, int]:
    """`grpo@2` → (grpo, 2).

    Raises:
        ValueError: no such stage or iteration; the message says what is possible.
    """
    match = re.fullmatch(r"([a-z]+)@(\d+)", text)
    if not match or match.group(1) not in set(StageName):
        stages = ", ".join(StageName)
        raise ValueError(f"--restart-from {text!r}: expected STAGE@ITERATION, such as grpo@2; stages: {stages}")
    iteration = int(match.group(2))
    if iteration > iterations:
        raise ValueError(f"--restart-from {text!r}: the cycle has {iterations} iterations")
    return StageName(match.group(1)), iteration
