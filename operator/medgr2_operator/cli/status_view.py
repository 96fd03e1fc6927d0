"""`medgr2 list` and `medgr2 status`: a cycle's status in words, wherever it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from medgr2_api.cycle import Cycle
from medgr2_api.printable import one_line
from medgr2_api.status import StageStatus

from ..plan.spec_edits import edits_of
from ..plan.types import StageKey
from .hints import print_edits


def print_list(cycles: Iterable[Cycle]) -> None:
    """A line for each cycle."""
    rows = [
        (cycle.metadata.name, str(cycle.status.phase), cycle.status.summary)
        for cycle in sorted(cycles, key=lambda cycle: cycle.metadata.name)
    ]
    print_table([("cycle", "phase", "summary"), *rows] if rows else [("no cycles",)])


def print_status(cycle: Cycle, restart: Callable[[StageKey], str]) -> None:
    """The cycle's conditions and stages, and what differs from its spec.

    Args:
        cycle: with its status.
        restart: the command that runs a stage again.
    """
    status = cycle.status
    print(f"{cycle.metadata.name}: {status.phase}; {status.summary}")
    for condition in status.conditions:
        reason = ": ".join(filter(None, [condition.reason, condition.message]))
        print(f"  {condition.type}: {condition.status}{f' ({reason})' if reason else ''}")
    print_table([("stage", "state", "attempt", "artifact", ""), *map(_row, status.stages)])
    if edits := edits_of(cycle):
        print_edits(cycle.metadata.name, edits, restart)


def print_table(rows: Sequence[tuple[str, ...]], widest: int = 40) -> None:
    """Columns, each row on one line of its own: a terminal wraps it where it must, and names stay whole.

    Args:
        rows: the heading first.
        widest: characters that a column is padded to; a longer cell pushes its row.
    """
    rows = [tuple(map(one_line, row)) for row in rows]
    widths = [min(widest, max(map(len, column))) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(("", *(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))).rstrip())


def _row(stage: StageStatus) -> tuple[str, ...]:
    message = stage.message or ("its model does not go on" if stage.promoted is False else "")
    why = ": ".join(filter(None, [stage.reason, message]))
    state = f"{stage.state} (reused)" if stage.reused else str(stage.state)
    return f"{stage.name}@{stage.iteration}", state, str(stage.attempt or ""), stage.input_hash[:12], why
