"""Commands that other commands tell their user to type: they work as they are printed."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from ..plan.spec_edits import SpecEdits
from ..plan.types import StageKey


def typed(*words: object) -> str:
    """A command line of ours, quoted for a shell."""
    return shlex.join(["medgr2", *map(str, words)])


def print_edits(cycle: str, edits: SpecEdits, restart: Callable[[StageKey], str]) -> None:
    """Says that a cycle's results are not those of its spec, how they differ, and what to do.

    Args:
        cycle: its name.
        edits: what differs.
        restart: the command that runs a stage, and all that depends on it, again.
    """
    print(f"{cycle}: its results are not of the spec as it is now:")
    for line in edits.lines():
        print(f"  {line}")
    for key in edits.restart:
        print(f"  {restart(key)}  # applies it")
    print("  or give the spec another metadata.name: what was made already is reused, and these results stay")
