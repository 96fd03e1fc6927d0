"""The doctor says what memory models need and about how long they compute, and stops what is out of the question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tests.unit.jobs.preflight.test_data_checks import TINY, case

from medgr2_jobs.preflight import compute_checks
from medgr2_jobs.preflight.check_result import CheckResult, CheckStatus
from medgr2_jobs.preflight.compute_checks import Computer

MIB = 2**20
LAPTOP = Computer((), 16 * MIB)
GPU = [{"name": name, "resources": {"limits": {"nvidia.com/gpu": 2}}} for name in ("sft", "grpo", "reward")]


def told(
    root: Path, monkeypatch: pytest.MonkeyPatch, here: Computer, millions: float = 1.0, **values: Any
) -> dict[str, CheckResult]:
    """Checks of a cycle with a policy of so many million parameters, in two files."""
    folder = root / "models/m"
    folder.mkdir(parents=True, exist_ok=True)
    half = int(millions * MIB / 2)
    for number in range(2):
        save_file({"w": np.zeros((half,), np.float16)}, folder / f"model-{number}.safetensors")
    monkeypatch.setattr(compute_checks, "this_computer", lambda: here)
    chosen = {"policy__baseModel": "models/m", "rewardModel__baseModel": TINY, "stages": [], **values}
    return {found.where: found for found in compute_checks.memory(case(root, **chosen))}


FULL = {"policy__sft": {"lora": {"rank": 0}}, "policy__grpo": {"lora": {"rank": 0}, "klCoefficient": 0.1}}
LORA = {"policy__sft": {"lora": {"rank": 8}}, "policy__grpo": {"lora": {"rank": 8}, "klCoefficient": 0.1}}


@pytest.mark.parametrize(
    ("memory", "settings", "sft", "grpo"),
    [
        (100, FULL, CheckStatus.OK, CheckStatus.OK),
        (17, FULL, CheckStatus.OK, CheckStatus.FAILED),  # 4 + 12 bytes a parameter; GRPO has a reference, too
        (16.5, FULL, CheckStatus.WARNING, CheckStatus.FAILED),  # activations
        (15, FULL, CheckStatus.FAILED, CheckStatus.FAILED),
        (7, LORA, CheckStatus.OK, CheckStatus.WARNING),
        (4, LORA, CheckStatus.FAILED, CheckStatus.FAILED),
    ],
)
def test_memory_against_this_computer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: float, settings: Any, sft: CheckStatus, grpo: CheckStatus
) -> None:
    found = told(tmp_path, monkeypatch, Computer((), int(memory * MIB)), **settings)
    assert found["stages[sft]"].status is sft
    assert "without activations (estimated)" in found["stages[sft]"].message
    assert f"this computer has no GPU and {memory / 1024:.0f} GiB" in found["stages[sft]"].message


def test_the_smallest_gpu_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = told(tmp_path, monkeypatch, Computer((100 * MIB, 3 * MIB), 1000 * MIB), **LORA)
    assert found["stages[sft]"].status is CheckStatus.FAILED
    assert "2 GPU(s) with 0 GiB each" in found["stages[sft]"].message


def test_what_a_stage_asks_of_a_cluster_is_not_judged_by_this_computer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = told(tmp_path, monkeypatch, Computer((), 1), **FULL, stages=GPU)
    assert found["stages[sft]"].status is CheckStatus.OK
    assert "it asks for 2 GPU(s): each has to have that" in found["stages[sft]"].message
    limited = [{"name": "sft", "resources": {"limits": {"memory": "8Mi"}}}]
    found = told(tmp_path, monkeypatch, Computer((), 1000 * MIB), **FULL, stages=limited)
    assert found["stages[sft]"].status is CheckStatus.FAILED
    assert "resources.limits.memory is 0.0 GiB" in found["stages[sft]"].message


def test_the_optimizer_is_shared_out_by_deepspeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def least(**settings: Any) -> CheckStatus:
        stage = {"name": "sft", "numProcPerNode": 4, **settings}
        return told(tmp_path, monkeypatch, Computer((7 * MIB,), 1), **FULL, stages=[stage])["stages[sft]"].status

    assert least() is CheckStatus.FAILED  # 16 MiB
    assert least(deepspeed="Zero2") is CheckStatus.WARNING  # 4 + 3
    assert least(deepspeed="Zero3") is CheckStatus.OK  # 1 + 3


def test_a_model_that_is_not_there_is_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = told(tmp_path, monkeypatch, LAPTOP, rewardModel__baseModel="Qwen/Qwen2.5-VL-3B-Instruct")
    assert found["stages"].status is CheckStatus.SKIPPED
    assert "the size of the reward model is not known yet" in found["stages"].message


def test_time_grows_with_the_work_and_says_that_it_is_rough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told(tmp_path, monkeypatch, LAPTOP)
    monkeypatch.setattr(compute_checks, "products_per_second", lambda: 1e9)
    chosen = {"policy__baseModel": "models/m", "rewardModel__baseModel": TINY, "stages": [], "data__benchmarks": []}

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
    elsewhere = seconds(1000, stages=GPU)
    assert elsewhere.status is CheckStatus.SKIPPED
    assert "whose speed is not known here" in elsewhere.message


def test_this_computer_is_looked_at() -> None:
    here = compute_checks.this_computer()
    assert here.memory > 2**28
    assert here.name
    assert compute_checks.products_per_second() > 1e6
