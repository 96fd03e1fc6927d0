"""What report, comparison and lineage say of a checkpoint that did not go on, and of one that was never made."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from medgr2_api import paths
from medgr2_jobs.evaluate.release import TrainedOn
from medgr2_jobs.report import compare, markdown
from medgr2_jobs.report.cycle_artifacts import CycleArtifacts
from medgr2_jobs.report.cycle_frame import CycleFrame
from medgr2_jobs.report.tables import gather
from medgr2_jobs.stages import report

from .conftest import RELEASES, publish_cycle

Made = dict[str, tuple[dict[str, Any], Path]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("releases")
    for cycle, release in (("plain", ""), ("worse", "worse"), ("skipped", "skipped")):
        publish_cycle(root, cycle, release=release)
        folder = root / paths.report(cycle)
        folder.mkdir(parents=True)
        (folder / "results.json").write_text("[]")
    return root


def frame_of(root: Path, cycle: str) -> CycleFrame:
    return CycleFrame(CycleArtifacts(root, cycle), 2)


def test_the_page_says_which_checkpoint_went_on_and_why(root: Path) -> None:
    page = markdown.report(gather(frame_of(root, "worse"), "worse", {}), [])
    assert "| grpo@2 (did not go on) |" in page
    assert "| sft@2 |" in page
    assert "| 2 | sft@2 | everything | 84.0 | – | – | 80.0 | -4.0 [-9.0, +1.0] |" in page
    assert "the interval of `sft@2` [" in page, "the notes are about what went on"
    assert "the interval of `grpo@2`" not in page
    plain = markdown.report(gather(frame_of(root, "plain"), "plain", {}), [])
    assert "What went on" not in plain, "an earlier version decided nothing"
    assert "the interval of `grpo@2` [" in plain


def test_a_grpo_that_was_skipped_has_a_row_here_and_none_among_the_trained(root: Path) -> None:
    tables = gather(frame_of(root, "skipped"), "skipped", {})
    assert [row.iteration for row in tables.grpo] == [1]
    (row,) = tables.releases
    assert (row.goes_on, row.trained_on, row.reward_model) == ("sft@2", TrainedOn.NOTHING, 0.8)
    assert row.why == RELEASES["skipped"].message
    page = markdown.report(tables, [])
    assert "| 2 | sft@2 | nothing | 84.0 | 80.0 | +4.0 [-1.0, +9.0] | – | – |" in page


def test_the_report_publishes_it(root: Path, context: Any) -> None:
    made = context(root, publish_cycle(root, "worse", release="worse"), "worse")
    report.run(made)
    (row,) = json.loads((made.writer.folder / "releases.json").read_text())
    assert (row["iteration"], row["goes_on"], row["why"]) == (2, "sft@2", RELEASES["worse"].message)
    with (made.writer.folder / "tables/releases.csv").open() as stream:
        (line,) = csv.DictReader(stream)
    assert (line["goes_on"], line["grpo_over_sft"]) == ("sft@2", "-0.04")


@pytest.mark.parametrize(("cycle", "last"), [("plain", "grpo@2"), ("worse", "sft@2"), ("skipped", "sft@2")])
def test_the_final_checkpoint_is_the_one_that_went_on(root: Path, cycle: str, last: str) -> None:
    final = compare.compare(root, ["plain", cycle], final=True)[-1]
    assert (final.cycle, final.name) == (cycle, last)
    assert final.to_first is None or final.to_first.against == "plain grpo@2"


def test_a_comparison_says_what_did_not_go_on(root: Path) -> None:
    lines = compare.compare(root, ["worse"])
    assert {line.name: line.goes_on for line in lines} == {
        "base": True, "sft@1": True, "grpo@1": True, "sft@2": True, "grpo@2": False,
    }  # fmt: skip
    assert "| grpo@2 (did not go on) |" in compare.markdown(lines)


def test_lineage_names_who_learnt(root: Path) -> None:
    assert frame_of(root, "worse").trained("grpo", 2)
    assert not frame_of(root, "skipped").trained("grpo", 2)
    assert frame_of(root, "skipped").trained("sft", 2)
