"""What a trainer would refuse after generation was paid for is told before."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tests.unit.jobs.preflight.test_data_checks import case

from medgr2_jobs.models import held
from medgr2_jobs.preflight import trainer_checks
from medgr2_jobs.preflight.check_result import CheckStatus


def results(root: Path, **values: Any) -> dict[str, tuple[CheckStatus, str]]:
    return {result.where: (result.status, result.message) for result in trainer_checks.trainers(case(root, **values))}


def test_a_cycle_without_options_of_its_own_is_not_looked_at(tmp_path: Path) -> None:
    assert results(tmp_path) == {}


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        ({"optim": "lomo"}, CheckStatus.FAILED, "needs a package that is not installed here: .*lomo_optim"),
        ({"use_liger_kernel": True}, CheckStatus.FAILED, "needs a package that is not installed here: .*liger_kernel"),
        ({"max_stpes": 3}, CheckStatus.FAILED, "did you mean 'max_steps'"),
        ({"generation_batch_size": 6}, CheckStatus.FAILED, "refuses these settings: .*divisible"),
        ({"tf32": True}, CheckStatus.SKIPPED, "there is no GPU here: .*tf32"),
        ({"weight_decay": 0.1}, CheckStatus.OK, "GRPOConfig takes its 1 options"),
    ],
)
def test_a_block_is_shown_to_the_library(
    tmp_path: Path, options: dict[str, Any], status: CheckStatus, said: str
) -> None:
    found = results(tmp_path, policy__grpo={"trainer": options, "numGenerations": 4})
    assert set(found) == {"policy.grpo.trainer"}
    assert found["policy.grpo.trainer"][0] is status
    assert re.search(said, found["policy.grpo.trainer"][1])


def test_a_retraining_is_looked_at_with_what_it_changes(tmp_path: Path) -> None:
    training = {"trainer": {"weight_decay": 0.1}, "retrainTrainer": {"optim": "lomo"}}
    found = results(tmp_path, rewardModel__training=training)
    assert {where: status for where, (status, _) in found.items()} == {
        "rewardModel.training.trainer": CheckStatus.OK,
        "rewardModel.training.retrainTrainer": CheckStatus.FAILED,
    }


def test_deepspeed_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [{"name": "sft", "deepspeed": "Zero2", "numProcPerNode": 2}]
    monkeypatch.setattr(trainer_checks.importlib.util, "find_spec", lambda name: None)
    ((status, message),) = results(tmp_path, stages=stages).values()
    assert (status, "install MedGR2 with `distributed`" in message) == (CheckStatus.FAILED, True)


@pytest.mark.parametrize(
    ("loading", "status", "said"),
    [
        ({"quantization": "NF4"}, CheckStatus.OK, "is there"),
        ({"attention": "FlashAttention2"}, CheckStatus.SKIPPED, "needs a GPU, and there is none here"),
        ({"quantization": "NF4"}, CheckStatus.FAILED, r"needs a package .*medgr2\[quantization\]"),
    ],
)
def test_what_holds_the_policy_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loading: dict[str, Any], status: CheckStatus, said: str
) -> None:
    if status is CheckStatus.FAILED:
        monkeypatch.setattr(held.importlib.util, "find_spec", lambda name: None)
    ((where, found),) = results(tmp_path, policy__loading=loading).items()
    assert (where, found[0]) == ("policy.loading", status)
    assert re.search(said, found[1])
