"""A comparison for a spreadsheet and for a paper: CSV, and a LaTeX table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .compare import ComparisonRow, Difference

_HEAD = ("cycle", "benchmark", "checkpoint", "n", "accuracy", "low", "high")
_OF_A_DIFFERENCE = ("against", "value", "low", "high", "n")
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip
#: A spreadsheet would take a text that begins like this for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def to_csv(rows: Sequence[ComparisonRow]) -> str:
    """One line per row, shares from 0 to 1."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    differences = [f"{name}_{field}" for name in ("previous", "first") for field in _OF_A_DIFFERENCE]
    writer.writerow([*_HEAD, *differences])
    for row in rows:
        cells = [row.cycle, row.benchmark or "validation", row.name, row.n, row.accuracy, row.low, row.high]
        cells += [*_fields(row.to_previous), *_fields(row.to_first)]
        writer.writerow(
            [f"'{cell}" if str(cell).startswith(_FORMULA) and isinstance(cell, str) else cell for cell in cells]
        )
    return stream.getvalue()


def to_latex(rows: Sequence[ComparisonRow]) -> str:
    """A `tabular` that needs `booktabs`; accuracy in percent, differences in points, a star where 0 is left out."""
    several = len({row.cycle for row in rows}) > 1
    previous = any(row.to_previous is not None for row in rows)
    head = ["cycle", "benchmark", "checkpoint", "$n$", "accuracy"]
    head += ["against the one before"] * previous + ["against the first cycle"] * several
    lines = [rf"\begin{{tabular}}{{lllr{'r' * (len(head) - 4)}}}", r"\toprule", " & ".join(head) + r" \\", r"\midrule"]
    for row in rows:
        cells = [_escaped(text) for text in (row.cycle, row.benchmark or "validation", row.name)]
        cells += [str(row.n), f"{100 * row.accuracy:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]"]
        cells += [_points(row.to_previous)] * previous + [_points(row.to_first)] * several
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _fields(difference: Difference | None) -> list[object]:
    return [getattr(difference, field) if difference else "" for field in _OF_A_DIFFERENCE]


def _points(difference: Difference | None) -> str:
    if difference is None:
        return ""
    star = "*" if difference.low > 0 or difference.high < 0 else ""
    return f"${100 * difference.value:+.1f}$ [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]{star}"


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
