"""Cycles beside each other, and the paired bootstrap."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from medgr2_api import paths
from medgr2_jobs.report import compare, comparison_formats

from .conftest import publish_cycle


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished cycles and one without a report."""
    root = tmp_path_factory.mktemp("compare")
    for cycle, better in (("plain", 0.0), ("better", 0.1), ("unfinished", 0.0)):
        publish_cycle(root, cycle, better=better)
        if cycle != "unfinished":
            folder = root / paths.report(cycle)
            folder.mkdir(parents=True)
            (folder / "results.json").write_text("[]")
    return root


def test_differences_are_exact_and_paired(root: Path) -> None:
    lines = {(line.cycle, line.name): line for line in compare.compare(root, ["plain", "better"])}
    assert [line.accuracy for (cycle, _), line in lines.items() if cycle == "plain"] == pytest.approx(
        [60 / 240, 156 / 240, 158 / 240, 202 / 240, 211 / 240]
    )
    first = lines["plain", "sft@1"]
    assert first.to_first is None
    assert first.to_previous is not None
    assert (first.to_previous.against, first.to_previous.n) == ("base", 240)
    assert first.to_previous.value == pytest.approx(0.4)
    second = lines["better", "sft@1"]
    assert second.to_first is not None
    assert second.to_first.value == pytest.approx(0.1)
    # the same questions right, and 24 more: the paired interval is far narrower than the two accuracies' intervals
    assert 0.05 < second.to_first.low < second.to_first.high < 0.16
    assert lines["better", "base"].to_first == compare.Difference("plain base", 0.0, 0.0, 0.0, 240)


def test_the_validation_split_and_the_greedy_answers(root: Path) -> None:
    assert {line.n for line in compare.compare(root, ["plain"], "validation")} == {60}
    greedy = compare.compare(root, ["plain"], scoring="greedy")
    assert greedy[1].accuracy == pytest.approx(0.6)


def test_the_command_prints_a_table_or_json(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main([str(root), "plain", "better"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 10
    assert len({line.count("|") for line in lines}) == 1
    assert compare.main([str(root), "plain", "--format", "json"]) == 0
    assert [line["name"] for line in json.loads(capsys.readouterr().out)] == [
        "base",
        "sft@1",
        "grpo@1",
        "sft@2",
        "grpo@2",
    ]


@pytest.mark.parametrize("cycle", ["unfinished", "nowhere"])
def test_a_cycle_without_a_report_is_named(root: Path, cycle: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main([str(root), "plain", cycle]) == 2
    error = capsys.readouterr().err
    assert cycle in error
    assert "has no report" in error
    assert "better, plain, unfinished" in error


def test_paired_difference_of_four_questions() -> None:
    value, low, high = compare.paired_difference([1, 0, 0, 0], [1, 1, 1, 0], list("aabb"), seed=1)
    assert value == 0.5
    assert low <= value <= high
    assert compare.paired_difference([1, 0], [1, 0], ["a", "b"], seed=1) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="same questions"):
        compare.paired_difference([1], [1, 0], ["a", "b"], seed=1)


def test_questions_about_one_image_are_drawn_together() -> None:
    """Twenty images with six questions each, all of them gained or none."""
    before = {str(n): (False, f"image-{n // 6}") for n in range(120)}
    after = {name: (int(name) // 6 % 2 == 0, image) for name, (_, image) in before.items()}
    found = compare.difference(before, after, "before")
    assert found is not None
    assert (found.value, found.n) == (0.5, 120)
    assert found.high - found.low > 0.3, "a 120-question interval would be less than 0.2 wide"


def test_paired_intervals_cover_the_truth() -> None:
    random = np.random.default_rng(3)
    images = [str(n // 6) for n in range(360)]
    covered = ignoring_images = 0
    for trial in range(200):
        b_rate = np.repeat(random.choice([0.2, 1.0], size=60), 6)  # b gains on some images and loses on others
        a, b = random.random(360) < 0.5, random.random(360) < b_rate
        _, low, high = compare.paired_difference(a, b, images, seed=trial)
        covered += low <= 0.1 <= high
        _, low, high = compare.paired_difference(a, b, [str(n) for n in range(360)], seed=trial)
        ignoring_images += low <= 0.1 <= high
    assert 0.90 <= covered / 200 <= 0.985
    assert ignoring_images / 200 < 0.87


def test_final_against_final(root: Path) -> None:
    lines = compare.compare(root, ["plain", "better"], final=True)
    assert [(line.cycle, line.name) for line in lines] == [("plain", "grpo@2"), ("better", "grpo@2")]
    assert lines[0].to_first is None
    assert lines[1].to_first is not None
    assert (lines[1].to_first.against, lines[1].to_previous) == ("plain grpo@2", None)
    assert lines[1].to_first.value == pytest.approx(lines[1].accuracy - lines[0].accuracy)


def test_tables_for_a_spreadsheet_and_for_a_paper(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(root), "plain", "better", "--final", "--format"]
    assert compare.main([*words, "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["checkpoint"] for row in rows] == ["grpo@2", "grpo@2"]
    assert float(rows[1]["first_value"]) > 0
    assert rows[0]["first_value"] == ""
    assert compare.main([*words, "latex"]) == 0
    table = capsys.readouterr().out
    assert table.startswith("\\begin{tabular}{lllrrr}\n")
    assert len({line.count(" & ") for line in table.splitlines() if " & " in line}) == 1


def test_no_name_is_a_command_of_latex_or_a_formula() -> None:
    row = compare.ComparisonRow("a_b&c%", 1, "sft", "=x{1}", 4, 0.5, 0.4, 0.6, None, None)
    table = comparison_formats.to_latex([row])
    assert r"a\_b\&c\% & =x\{1\} & sft@1" in table
    assert "'=x{1}" in comparison_formats.to_csv([row])
