"""The doctor says what memory models need and about how long they compute, and stops what is out of the question."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.jobs.preflight.test_data_checks import TINY, case

from medgr2_api.fit.assumptions import of_data
from medgr2_api.fit.known_models import CONFIGS
from medgr2_api.fit.memory import Need
from medgr2_api.fit.setting import Setting
from medgr2_api.fit.stages import stages
from medgr2_jobs.preflight import compute_checks, model_shapes
from medgr2_jobs.preflight.check_result import CheckResult, CheckStatus
from medgr2_jobs.preflight.compute_checks import Computer

GIB = 2**30
H100 = Computer((80 * GIB,), 1000 * GIB, "NVIDIA H100 80GB HBM3")
LAPTOP = Computer((), 16 * GIB)
GPU = [{"name": name, "resources": {"limits": {"nvidia.com/gpu": 2}}} for name in ("sft", "grpo", "reward")]


def told(root: Path, monkeypatch: pytest.MonkeyPatch, here: Computer, **values: Any) -> dict[str, CheckResult]:
    """Checks of a cycle with a 7B policy, whose weights are not there yet."""
    folder = root / "models/m"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS["Qwen2.5-VL-7B-Instruct"]))
    monkeypatch.setattr(compute_checks, "this_computer", lambda: here)
    chosen = {"policy__baseModel": "models/m", "rewardModel__baseModel": TINY, "stages": [], **values}
    return {found.where: found for found in compute_checks.memory(case(root, **chosen))}


def need(root: Path, here: Computer, name: str, **values: Any) -> Need:
    """What the formulas say of a stage."""
    context = case(root, policy__baseModel="models/m", rewardModel__baseModel=TINY, stages=[], **values)
    shapes = model_shapes.shapes(context)
    assert not isinstance(shapes, str)
    data = model_shapes.data_size(context)
    setting = Setting(context.spec, shapes.models, data, here.hardware, of_data(context.spec))
    return next(stage.need for stage in stages(setting) if stage.name == name)


FULL = {"policy__sft": {"lora": {"rank": 0}}, "policy__grpo": {"lora": {"rank": 0}, "klCoefficient": 0.1}}
LORA = {"policy__sft": {"lora": {"rank": 8}}, "policy__grpo": {"lora": {"rank": 8}, "klCoefficient": 0.1}}


@pytest.mark.parametrize(
    ("gigabytes", "settings", "sft", "grpo"),
    [
        (200, FULL, CheckStatus.OK, CheckStatus.OK),
        (160, FULL, CheckStatus.OK, CheckStatus.FAILED),  # GRPO has a reference, too
        (80, FULL, CheckStatus.FAILED, CheckStatus.FAILED),
        (80, LORA, CheckStatus.OK, CheckStatus.OK),
        (12, LORA, CheckStatus.FAILED, CheckStatus.FAILED),
    ],
)
def test_memory_against_this_computer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gigabytes: int, settings: Any, sft: CheckStatus, grpo: CheckStatus
) -> None:
    found = told(tmp_path, monkeypatch, Computer((gigabytes * GIB,), 1000 * GIB, "Card"), **settings)
    assert found["stages[sft]"].status is sft
    assert found["stages[grpo]"].status is grpo
    assert "estimated" in found["stages[sft]"].message
    assert f"this computer has 1 GPU(s) with {gigabytes} GiB each" in found["stages[sft]"].message


def test_what_only_activations_decide_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told(tmp_path, monkeypatch, H100)
    sft = need(tmp_path, H100, "sft", **LORA)
    between = int((sft.least + sft.total) / 2)
    found = told(tmp_path, monkeypatch, Computer((between,), 1000 * GIB), **LORA)["stages[sft]"]
    assert found.status is CheckStatus.WARNING
    assert "it may not suffice" in found.message


def test_what_to_change_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = told(tmp_path, monkeypatch, H100, **FULL)["stages[grpo]"]
    assert "policy.grpo.lora: {rank: 64}" in found.message


def test_the_smallest_gpu_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = told(tmp_path, monkeypatch, Computer((100 * GIB, 3 * GIB), 1000 * GIB), **LORA)
    assert found["stages[sft]"].status is CheckStatus.FAILED
    assert "2 GPU(s) with 3 GiB each" in found["stages[sft]"].message


def test_main_memory_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = told(tmp_path, monkeypatch, replace(H100, memory=8 * GIB), **LORA)["stages[sft]"]
    assert found.status is CheckStatus.FAILED
    assert "of main memory" in found.message


def test_a_model_of_real_size_without_a_gpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = told(tmp_path, monkeypatch, Computer((), 1000 * GIB), **LORA)["stages[sft]"]
    assert found.status is CheckStatus.FAILED
    assert "8.3 G parameters without a GPU" in found.message


def test_what_a_stage_asks_of_a_cluster_is_not_judged_by_this_computer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = told(tmp_path, monkeypatch, Computer((), 1000 * GIB), **LORA, stages=GPU)
    assert found["stages[sft]"].status is CheckStatus.OK
    assert "it asks for 2 GPU(s), H100 80GB" in found["stages[sft]"].message
    limited = [{"name": "sft", "resources": {"limits": {"memory": "8Mi"}}}]
    found = told(tmp_path, monkeypatch, Computer((), 1000 * GIB), policy__baseModel=TINY, stages=limited)
    assert found["stages[sft]"].status is CheckStatus.FAILED
    assert "resources.limits.memory is 0.0 GiB" in found["stages[sft]"].message
    assert found["stages[grpo]"].status is CheckStatus.OK


def test_the_optimizer_is_shared_out_by_deepspeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def status(**settings: Any) -> CheckStatus:
        node = {"name": "sft", "numProcPerNode": 8, "resources": {"limits": {"nvidia.com/gpu": 8}}, **settings}
        return told(tmp_path, monkeypatch, LAPTOP, **FULL, stages=[node])["stages[sft]"].status

    def fails(found: CheckStatus) -> bool:
        return found is CheckStatus.FAILED

    assert fails(status())
    resources = {"limits": {"nvidia.com/gpu": 8, "memory": "1Ti"}}
    assert not fails(status(deepspeed="Zero2", resources=resources))
    assert not fails(status(deepspeed="Zero3", resources=resources))


def test_a_model_that_is_not_there_is_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = told(tmp_path, monkeypatch, LAPTOP, rewardModel__baseModel="org/nobody-knows-it")
    assert found["stages"].status is CheckStatus.SKIPPED
    assert "the size of the reward model is not known yet" in found["stages"].message


def test_a_configuration_that_says_too_little_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "models/broken"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    found = told(tmp_path, monkeypatch, LAPTOP, policy__baseModel="models/broken")["stages"]
    assert found.status is CheckStatus.SKIPPED
    assert "config.json: hidden_size is None" in found.message


def test_time_grows_with_the_work_and_says_that_it_is_rough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told(tmp_path, monkeypatch, LAPTOP)
    monkeypatch.setattr(compute_checks, "products_per_second", lambda: 1e8)
    chosen = {"policy__baseModel": TINY, "rewardModel__baseModel": TINY, "stages": [], "data__benchmarks": []}

    def seconds(images: int, **values: Any) -> CheckResult:
        phantoms = [{"name": "p", "format": "Phantom", "phantom": {"images": images}}]
        (found,) = compute_checks.duration(case(tmp_path, **{**chosen, "data__sources": phantoms, **values}))
        return found

    few, many = seconds(1000), seconds(100_000)
    assert few.status is CheckStatus.OK
    assert "4,000 seed questions" in few.message
    assert "of the order of" in few.message
    assert "three times less or more" in few.message
    hours = [float(each.message.split("order of ")[1].split(" h")[0].replace(",", "")) for each in (few, many)]
    assert hours[1] > 3 * hours[0]
    elsewhere = seconds(1000, stages=GPU, policy__baseModel="models/m")
    assert elsewhere.status is CheckStatus.OK
    assert "GPU-hours" in elsewhere.message
    assert "H100 80GB" in elsewhere.message


def test_this_computer_is_looked_at() -> None:
    here = compute_checks.this_computer()
    assert here.memory > 2**28
    assert here.name
    assert compute_checks.products_per_second() > 1e6
