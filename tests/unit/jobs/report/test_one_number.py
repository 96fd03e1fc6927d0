"""One figure, one interval: terminal, comparison, report and figures show the same checkpoint alike."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medgr2_api import paths
from medgr2_api.percent import percent_interval
from medgr2_jobs.report import compare, figures
from medgr2_jobs.runner.context import StageContext
from medgr2_jobs.stages import report
from medgr2_operator.cli.results import print_results

from .conftest import publish_cycle

SHOWN = re.compile(r"\b(base|sft@\d|grpo@\d)\b[^\n]*?(\d+\.\d \[\d+\.\d, \d+\.\d\])")
NAMES = ["base", "sft@1", "grpo@1", "sft@2", "grpo@2"]


@pytest.fixture
def root(
    tmp_path: Path, context: Callable[..., StageContext[Any]], monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, list[str]]:
    """A finished cycle, its report where the executor puts it, and the values written into its figure."""
    drawn: list[str] = []
    monkeypatch.setattr(figures.Axes, "annotate", lambda self, text, *_, **__: drawn.append(text))
    inputs = publish_cycle(tmp_path, "trial")
    ctx = context(tmp_path, inputs)
    report.run(ctx)
    folder = tmp_path / paths.report("trial")
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(ctx.writer.path("report.md").parent)
    return tmp_path, drawn


def test_the_same_row_shows_the_same_figures_everywhere(
    root: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    workspace, drawn = root
    folder = workspace / paths.report("trial")
    print_results(folder)
    terminal = capsys.readouterr().out.split("micro accuracy on")
    assert compare.main([str(workspace), "trial"]) == 0
    compared = capsys.readouterr().out
    assert compare.main([str(workspace), "trial", "--split", "validation"]) == 0
    validated = capsys.readouterr().out
    document = (folder / "report.md").read_text()
    written = dict(re.findall(r"\*\*(test|validation)(.*?)\n\n(?=\*\*|How)", document, re.S))
    for title, table in (("test", compared), ("validation", validated)):
        [on_terminal] = [part for part in terminal if part.strip().startswith(title)]
        rows = dict(SHOWN.findall(table))
        assert list(rows) == NAMES
        assert dict(SHOWN.findall(on_terminal)) == rows
        assert dict(SHOWN.findall(written[title])) == rows
        assert set(drawn) >= {shown.split()[0] for shown in rows.values()}
    assert "micro accuracy, %" in compared
    assert "| micro accuracy |" in document


def test_greedy_answers_have_their_own_figure(root: tuple[Path, list[str]]) -> None:
    """Of the written answers, too, the interval is the evaluation's."""
    workspace, _ = root
    line = compare.compare(workspace, ["trial"], scoring="greedy")[1]
    assert percent_interval(line.accuracy, line.low, line.high).startswith("60.0 [")
    assert line.low < line.accuracy < line.high
