"""Reading a cycle for a command: problems go to stderr, one line each, and end the command with exit code 2."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

import typer

from medgr2_api import gpu_use
from medgr2_api.cycle import Cycle
from medgr2_api.stage_contract import ExitCode
from medgr2_api.unsupported import unsupported
from medgr2_api.yaml_loader import CycleError, Problem, load_cycle, locate

from ..render.render_context import RenderSettings
from ..render.trial import unrenderable, without_accelerator


def read_cycle(file: Path, *, local: bool = False) -> Cycle:
    """The cycle in `file`, or the end of the command. `local`: it must also be what one computer can run."""
    try:
        cycle = load_cycle(file)
    except CycleError as error:
        _exit(error.problems, file)
    problems = unsupported(cycle.spec, local=local)
    if not problems and not local:
        errors = unrenderable(cycle, RenderSettings(image=""))
        problems = [Problem(error.path, error.message) for error in errors]
    if problems:
        _exit(locate(problems, file.read_text()), file)
    return cycle


def validate(file: Path) -> int:
    """`medgr2 validate`: says whether the cycle is valid."""
    cycle = read_cycle(file)
    print(f"{file}: {cycle.metadata.name} is valid")
    for remark in gpu_use.remarks(cycle.spec):
        print(f"  {remark}")
    lacking = without_accelerator(cycle, RenderSettings(image=""))
    for problem in locate([Problem(error.path, error.message) for error in lacking], file.read_text()):
        print(f"{file}: a cluster refuses this: {problem}", file=sys.stderr)
    return ExitCode.OK


def _exit(problems: list[Problem], file: Path) -> NoReturn:
    """Prints the problems and ends the command."""
    for problem in problems:
        print(f"{file}: {problem}", file=sys.stderr)
    raise typer.Exit(ExitCode.USAGE)
