"""The doctor looks where the spec points, and tells which pictures training and tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.support.cycle_documents import changed

from medgr2_api.cycle import Cycle
from medgr2_api.presets import resolve
from medgr2_jobs.preflight import data_checks
from medgr2_jobs.preflight.check_result import CheckStatus, PreflightContext

TINY = "builtin://tiny-qwen2.5-vl"


def case(root: Path, **values: Any) -> PreflightContext:
    document = changed({f"spec.{path.replace('__', '.')}": value for path, value in values.items()})
    cycle = Cycle.model_validate(document)
    return PreflightContext(cycle, resolve(cycle.spec), root, questions=0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("data/train", "data/test", "data/images"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def _verdicts(findings: Any) -> dict[str, CheckStatus]:
    return {finding.where: finding.status for finding in findings}


def test_what_is_there_and_what_is_not(root: Path) -> None:
    found = case(root, data__benchmarks=[{"name": "test", "format": "OmniMedVQA", "uri": "data/tset"}])
    told = list(data_checks.data(found))
    assert _verdicts(told) == {
        "data.sources[train].uri": CheckStatus.OK,
        "data.sources[train].images": CheckStatus.OK,
        "data.benchmarks[test].uri": CheckStatus.FAILED,
    }
    assert "data/tset does not exist; copy it" in told[-1].message


def test_a_link_that_leads_out_is_refused(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (root / "data/train").rmdir()
    (root / "data/train").symlink_to(elsewhere)
    first, *_ = data_checks.data(case(root))
    assert first.status is CheckStatus.FAILED
    assert "leads out of the workspace" in first.message


def test_what_prepare_fetches_cannot_be_known(root: Path) -> None:
    found = case(
        root,
        data__sources=[{"name": "hub", "format": "MMMU", "uri": "hf://MMMU/MMMU"}],
        policy__baseModel="Qwen/Qwen2.5-VL-7B-Instruct",
        rewardModel={"baseModel": TINY, "checkpoint": "s3://bucket/r"},
    )
    assert _verdicts(data_checks.data(found))["data.sources[hub].uri"] is CheckStatus.SKIPPED
    assert _verdicts(data_checks.models(found)) == {
        "policy.baseModel": CheckStatus.SKIPPED,
        "rewardModel.baseModel": CheckStatus.OK,
        "rewardModel.checkpoint": CheckStatus.SKIPPED,
    }


def test_a_folder_of_the_workspace_goes_before_the_hub(root: Path) -> None:
    (root / "models/mine").mkdir(parents=True)
    named = {"policy__baseModel": "models/mine", "rewardModel__baseModel": "models/other/deep"}
    assert _verdicts(data_checks.models(case(root, **named))) == {
        "policy.baseModel": CheckStatus.OK,
        "rewardModel.baseModel": CheckStatus.FAILED,
    }


def _picture(path: Path, colour: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), colour).save(path)


@pytest.mark.parametrize(("on_leak", "verdict"), [("Drop", CheckStatus.WARNING), ("Fail", CheckStatus.FAILED)])
def test_pictures_that_training_and_a_benchmark_share(root: Path, on_leak: str, verdict: CheckStatus) -> None:
    benchmark = {"name": "test", "format": "OmniMedVQA", "uri": "data/test", "images": "tested", "onLeak": on_leak}
    for name, colour in (("a.png", 1), ("b.png", 2)):
        _picture(root / "data/images" / name, colour)
    _picture(root / "tested/deep/c.png", 3)
    (alone,) = data_checks.overlap(case(root, data__benchmarks=[benchmark]))
    assert alone.status is CheckStatus.OK
    assert "none of its 1 picture files is among the 2" in alone.message
    _picture(root / "tested/deep/d.png", 2)
    (shared,) = data_checks.overlap(case(root, data__benchmarks=[benchmark]))
    assert shared.status is verdict
    assert "1 of its 2 picture files" in shared.message
    assert "b.png" in shared.message


def test_formats_without_picture_files_are_left_to_prepare(root: Path) -> None:
    benchmark = {"name": "test", "format": "MMMU", "uri": "data/test"}
    (found,) = data_checks.overlap(case(root, data__benchmarks=[benchmark]))
    assert found.status is CheckStatus.SKIPPED
