"""The doctor estimates what the disk has to hold, and whether images fit into a model's context."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.unit.jobs.preflight.test_data_checks import TINY, case

from medgr2_api.fit.known_models import CONFIGS
from medgr2_jobs.preflight import capacity_checks
from medgr2_jobs.preflight.check_result import CheckStatus


class _Usage(NamedTuple):
    total: int
    used: int
    free: int


def _model(root: Path, context: int = 32768, size: int = 1000) -> str:
    folder = root / "models/m"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps({"text_config": {"max_position_embeddings": context}, "vision_config": {"patch_size": 14}})
    )
    (folder / "preprocessor_config.json").write_text(json.dumps({"patch_size": 14, "merge_size": 2}))
    (folder / "model.safetensors").write_bytes(b"\0" * size)
    return "models/m"


def _shaped(root: Path) -> str:
    """A model of 3B's shape with two layers, without weights."""
    folder = root / "models/shaped"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**CONFIGS["Qwen2.5-VL-3B-Instruct"], "num_hidden_layers": 2}))
    return "models/shaped"


def _models(name: str) -> dict[str, Any]:
    return {"policy__baseModel": name, "rewardModel__baseModel": TINY}


def test_a_full_fine_tune_needs_room_for_its_optimizer_and_adapters_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = _shaped(tmp_path)
    free = _Usage(0, 0, 40 * 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    adapters = case(tmp_path, **_models(name), policy__sft={"lora": {"rank": 8}}, policy__grpo={"lora": {"rank": 8}})
    full = case(tmp_path, **_models(name), policy__sft={"lora": {"rank": 0}}, policy__grpo={"lora": {"rank": 0}})
    (small,) = capacity_checks.disk(adapters)
    (large,) = capacity_checks.disk(full)
    assert small.status is CheckStatus.OK
    assert large.status is CheckStatus.FAILED
    assert "enlarge the volume" in large.message


def test_more_images_need_more_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(0, 0, 2 * 10**9))
    phantoms = {"name": "p", "format": "Phantom", "phantom": {"images": 10}}
    few = case(tmp_path, **_models(TINY), data__sources=[phantoms], data__benchmarks=[])
    many = case(
        tmp_path, **_models(TINY), data__sources=[{**phantoms, "phantom": {"images": 1_000_000}}], data__benchmarks=[]
    )
    assert [finding.status for finding in capacity_checks.disk(few)] == [CheckStatus.OK]
    assert [finding.status for finding in capacity_checks.disk(many)] == [CheckStatus.FAILED]


def test_the_size_of_a_model_that_is_not_there_is_not_guessed(tmp_path: Path) -> None:
    (found,) = capacity_checks.disk(case(tmp_path, **_models("org/nobody-knows-it")))
    assert found.status is CheckStatus.SKIPPED
    assert "policy model is not known" in found.message


@pytest.mark.parametrize(("context", "verdict"), [(32768, CheckStatus.OK), (1500, CheckStatus.FAILED)])
def test_an_image_has_to_fit_into_the_context(tmp_path: Path, context: int, verdict: CheckStatus) -> None:
    found = case(tmp_path, **_models(_model(tmp_path, context)))
    policy, reward = capacity_checks.tokens(found)
    assert policy.status is verdict
    assert "512 tokens for an image of 401,408 pixels" in policy.message
    assert (reward.where, reward.status) == ("rewardModel.baseModel", CheckStatus.OK)


def test_a_context_that_is_not_told_is_not_guessed(tmp_path: Path) -> None:
    name = _model(tmp_path)
    (tmp_path / name / "config.json").write_text("{}")
    assert next(capacity_checks.tokens(case(tmp_path, **_models(name)))).status is CheckStatus.SKIPPED
