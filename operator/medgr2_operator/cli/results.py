"""The results table that ends a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from medgr2_api.metrics import is_headline
from medgr2_api.percent import percent, percent_interval, points
from medgr2_api.printable import one_line

from ..local.console import Console

_CHECKPOINTS = {"base": 0, "sft": 1, "grpo": 2}
_CONDITIONS = ("real", "blank", "shuffled", "options_only", "option_prior", "chance")


def print_results(report: Path) -> None:
    """Prints accuracy by checkpoint, with its controls, from a report's `results.json`."""
    path = report / "results.json"
    console = Console()
    if not path.is_file():  # a cycle without the report stage
        console.print("complete; this cycle makes no report")
        return
    rows = [row for row in json.loads(path.read_text()) if is_headline(row) and row["condition"] in _CONDITIONS]
    for split, benchmark in sorted({(row["split"], row["benchmark"]) for row in rows}, reverse=True):
        shown = [row for row in rows if (row["split"], row["benchmark"]) == (split, benchmark)]
        console.print(_title(shown), style="bold", highlight=False, soft_wrap=True)  # a table's own is as narrow as it
        console.print(_table(shown))
    for line in [*_releases(report), *_corrections(report), *_students(report)]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"report: {report / 'report.md'}", highlight=False, soft_wrap=True)


def _rows(report: Path, name: str) -> list[dict[str, Any]]:
    """One of the report's tables; empty where it has none."""
    path = report / name
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    return rows


def _releases(report: Path) -> list[str]:
    """Which checkpoint of each iteration went on, and why, where that had to be decided."""
    rows = _rows(report, "releases.json")
    return [f"iteration {row['iteration']}: {one_line(row['why'])}" for row in rows if row["why"]]


def _corrections(report: Path) -> list[str]:
    """How many questions of each iteration were settled, and what that made of its training data."""
    lines = []
    for row in _rows(report, "corrections.json"):
        line = f"iteration {row['iteration']}: {row['settled']:,} of {row['asked']:,} questions settled"
        if row["settled_precision"] is not None:
            line += f", {percent(row['settled_precision'])} % rightly"
        line += (
            f"; {row['against_generator']:,} against the generator, {row['against_reward']:,} against the reward model"
        )
        if row["in_use"]:
            line += (
                f"; of {row['kept']:,} kept rows {row['corrected']:,} corrected and {row['withdrawn']:,} withdrawn, "
                f"{row['rescued']:,} rescued"
            )
        lines.append(line)
    return lines


def _students(report: Path) -> list[str]:
    """What each student did on the probe, and whether it takes tasks over."""
    lines = []
    for row in _rows(report, "students.json"):
        if row["gain"] is None:  # the first generator's, beside it
            continue
        gain = f"{points(row['gain'])} [{points(row['gain_low'])}, {points(row['gain_high'])}]"
        lines.append(
            f"iteration {row['iteration']}: of the student's triplets the reward model accepts "
            f"{percent(row['accepted'])} %, {gain} points against the generator's; {one_line(row['decision'])}"
        )
    return lines


def _title(rows: list[dict[str, Any]]) -> str:
    split, benchmark, count = rows[0]["split"], rows[0]["benchmark"], max(row["n"] for row in rows)
    where = f"{split} {benchmark}" if benchmark else split
    return f"micro accuracy on {where} in %, n = {count}, 95 % intervals by image"


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    conditions = [name for name in _CONDITIONS if any(row["condition"] == name for row in rows)]
    table.add_column("checkpoint", no_wrap=True)
    for name in conditions:
        title = "real image" if name == "real" else name.replace("_", " ")
        longest = max(len(word) for word in title.split())
        table.add_column(title, justify="right", no_wrap=name == "real", min_width=longest)
    by_key = {(row["iteration"], row["checkpoint"], row["condition"]): row for row in rows}
    for iteration, checkpoint in sorted({key[:2] for key in by_key}, key=lambda k: (k[0], _CHECKPOINTS[k[1]])):
        cells = []
        for name in conditions:
            # chance and the option prior need no model: they stand in the first row
            row = by_key.get((iteration, checkpoint, name))
            if row is None:
                cells.append("")
            elif name == "real":
                cells.append(percent_interval(row["value"], row["low"], row["high"]))
            else:
                cells.append(percent(row["value"]))
        table.add_row("base" if iteration == 0 else f"{checkpoint}@{iteration}", *cells)
    return table
