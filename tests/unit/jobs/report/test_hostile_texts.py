"""Kinds of questions and modalities are a model's words, too: a report shows them, and nothing obeys them."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

from medgr2_jobs.report.compare import ComparisonRow
from medgr2_jobs.report.compare import markdown as comparison
from medgr2_jobs.report.markdown_table import Markup, table
from medgr2_jobs.report.tables import to_csv

HOSTILE = "x | y\n| z | <img src=http://h/a.png onerror=alert(1)> [a](b)\x1b[2J"


@dataclass
class Row:
    """A row with a text of somebody else's."""

    kind: str
    share: float
    counts: dict[str, str]


def test_a_table_keeps_its_shape() -> None:
    text = table(["kind", "n"], [[HOSTILE, "1"], [Markup("**2** | x"), "3"]])
    lines = text.splitlines()
    assert len(lines) == 4
    assert lines[2].count("|") == 3
    assert "<" not in text
    assert "\x1b" not in text
    assert "](" not in text.replace("\\](", "")
    assert "**2**" in lines[3]


def test_a_comparison_keeps_its_shape() -> None:
    row = dict.fromkeys(ComparisonRow.__dataclass_fields__)
    row |= {"cycle": "c", "benchmark": HOSTILE, "checkpoint": "sft", "iteration": 1, "n": 3}
    row |= {"accuracy": 0.5, "low": 0.4, "high": 0.6}
    lines = comparison([ComparisonRow(**row)]).splitlines()
    assert lines[2].startswith("| c | x &#124; y")
    assert lines[3] == ""


def test_csv_holds_no_formula_in_cells_and_heads() -> None:
    text = to_csv([Row(" =cmd()", -0.5, {"@head": "\t+1", "plain": "\r-x"})])
    (head, cells) = csv.reader(io.StringIO(text, newline=""))
    assert head == ["kind", "share", "'@head", "plain"]
    assert cells == ["' =cmd()", "-0.5", "'\t+1", "'\n-x"]
