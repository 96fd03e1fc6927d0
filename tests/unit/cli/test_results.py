"""The table that ends a run: one row per checkpoint, the image's worth beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medgr2_operator.cli.results import print_results


def row(checkpoint: str, iteration: int, value: float, **changes: Any) -> dict[str, Any]:
    return {
        "cycle": "c", "iteration": iteration, "checkpoint": checkpoint, "split": "test", "benchmark": "bench",
        "condition": "real", "scoring": "option_logprob", "slice": "all", "metric": "microAccuracy",
        "value": value, "low": value - 0.05, "high": value + 0.05, "n": 240, **changes,
    }  # fmt: skip


def test_headline_figures_in_the_order_of_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    rows = [
        row("grpo", 1, 0.7),
        row("sft", 1, 0.6),
        row("base", 0, 0.3),
        row("base", 0, 0.25, condition="chance"),
        row("sft", 1, 0.41, condition="blank"),
        row("sft", 1, 0.99, scoring="greedy"),
        row("sft", 1, 0.98, slice="modality=CT"),
        row("sft", 1, 0.97, metric="macroAccuracy"),
        row("base", 0, 0.5, split="validation", benchmark="", n=60),
    ]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    print_results(tmp_path)
    output = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in output.splitlines() if line.strip()]
    assert lines.index("base 50.0 [45.0, 55.0]") < lines.index("base 30.0 [25.0, 35.0] 25.0")
    names = [line.split()[0] for line in lines if "[" in line]
    assert names == ["base", "base", "sft@1", "grpo@1"]
    assert "sft@1 60.0 [55.0, 65.0] 41.0" in lines
    assert "micro accuracy on test bench in %, n = 240, 95 % intervals by image" in output.splitlines(), "on one line"
    assert not [text for text in ("99", "98", "97") if text in output]
    assert f"report: {tmp_path / 'report.md'}" in output


def test_it_says_which_checkpoint_went_on_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text(json.dumps([row("sft", 1, 0.6)]))
    releases = [{"iteration": 1, "why": ""}, {"iteration": 2, "why": "sft goes on: grpo is worse"}]
    (tmp_path / "releases.json").write_text(json.dumps(releases))
    print_results(tmp_path)
    output = capsys.readouterr().out
    assert "iteration 2: sft goes on: grpo is worse\n" in output
    assert "iteration 1" not in output, "nothing had to be decided"


def test_it_says_what_became_of_the_training_data_and_what_the_student_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text(json.dumps([row("sft", 1, 0.6)]))
    asked = {
        "iteration": 1, "asked": 2737, "settled": 2483, "settled_precision": 0.959, "against_generator": 1395,
        "against_reward": 45, "in_use": True, "kept": 1201, "corrected": 14, "withdrawn": 99, "rescued": 1381,
    }  # fmt: skip
    more = {**asked, "iteration": 2, "settled_precision": None, "in_use": False}
    (tmp_path / "corrections.json").write_text(json.dumps([asked, more]))
    first = {"iteration": 1, "accepted": 0.375, "gain": None, "gain_low": None, "gain_high": None, "decision": ""}
    student = {
        "iteration": 1, "accepted": 0.625, "gain": 0.25, "gain_low": 0.194, "gain_high": 0.31,
        "decision": "refused: entropy of its answers: 0.803, bound 0.812",
    }  # fmt: skip
    (tmp_path / "students.json").write_text(json.dumps([first, student]))
    print_results(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert (
        "iteration 1: 2,483 of 2,737 questions settled, 95.9 % rightly; 1,395 against the generator, 45 against the "
        "reward model; of 1,201 kept rows 14 corrected and 99 withdrawn, 1,381 rescued"
    ) in lines
    assert (
        "iteration 2: 2,483 of 2,737 questions settled; 1,395 against the generator, 45 against the reward model"
    ) in lines
    assert (
        "iteration 1: of the student's triplets the reward model accepts 62.5 %, +25.0 [+19.4, +31.0] points against "
        "the generator's; refused: entropy of its answers: 0.803, bound 0.812"
    ) in lines
    assert len(lines) < 15, "the first generator has no line of its own"


def test_a_cycle_without_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_results(tmp_path)
    assert "makes no report" in capsys.readouterr().out
