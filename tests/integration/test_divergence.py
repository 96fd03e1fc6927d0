"""Numbers that are none end the stage that they come up in, with its name; no such weights are published."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from medgr2_api.stage_contract import RESULT_PATH_ENV, ExitCode, StageRequest, StageResult
from medgr2_jobs.engine.in_process import InProcessSampler
from medgr2_jobs.errors import NotFinite
from medgr2_jobs.evaluate import scoring
from medgr2_jobs.models import vlm
from medgr2_jobs.models.vlm import Encoder, PromptResponse
from medgr2_jobs.policy import fine_tuning
from medgr2_jobs.reward import scorer
from medgr2_jobs.reward.model import RewardModel
from medgr2_jobs.stages import sft
from medgr2_jobs.store import finite_weights
from tests.support import policy_fixtures
from tests.support.policy_fixtures import FORMAT, PolicyWorkspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> PolicyWorkspace:
    return policy_fixtures.build(tmp_path_factory.mktemp("workspace"))


@pytest.fixture
def result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(RESULT_PATH_ENV, str(tmp_path / "result.json"))
    return tmp_path / "result.json"


def ended(workspace: PolicyWorkspace, request: StageRequest, result: Path) -> str:
    """What a stage says that diverged; it has published nothing."""
    assert workspace.run(request, expect=ExitCode.CONFIG) is None
    told = StageResult.model_validate_json(result.read_text())
    assert told.reason == "NotFinite"
    assert not list((workspace.root / "artifacts" / request.stage / request.input_hash).rglob("manifest.json"))
    return told.message


def with_rate(request: StageRequest, field: str, rate: float) -> StageRequest:
    parameters = {**request.parameters, field: {**request.parameters[field], "learningRate": rate}}
    digest = hashlib.sha256(f"{request.input_hash}/{rate}".encode()).hexdigest()
    return request.model_copy(update={"parameters": parameters, "input_hash": digest})


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("clipping", [1.0, 0.0])
def test_sft_stops_at_the_step_that_diverges(
    workspace: PolicyWorkspace, result: Path, rank: int, clipping: float
) -> None:
    trainer = {"max_steps": 8, "per_device_train_batch_size": 4, "max_grad_norm": clipping, "save_steps": 1}
    request = with_rate(workspace.sft(trainer, rank=rank, name=f"{clipping}"), "training", 1e30)
    message = ended(workspace, request, result)
    assert "sft: the " in message
    assert "Lower policy.sft.learningRate" in message
    assert any(f"of step {step} is" in message for step in (2, 3, 4)), message


def test_a_model_of_nan_is_blamed_where_it_comes_from(
    workspace: PolicyWorkspace, result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = vlm.load_model

    def broken(path: Path, **options: Any) -> Any:
        model = honest(path, **options)
        with torch.no_grad():
            model.lm_head.weight[3] = math.nan
        return model

    monkeypatch.setattr(fine_tuning.vlm, "load_model", broken)
    message = ended(workspace, workspace.sft(name="broken"), result)
    assert "of step 1 is nan" in message
    assert "look at the model that it starts from" in message


def test_grpo_stops_too(workspace: PolicyWorkspace, result: Path) -> None:
    request = with_rate(workspace.grpo({"max_steps": 8, "max_grad_norm": 0.0}, name="far"), "grpo", 1e30)
    message = ended(workspace, request, result)
    assert message.startswith("grpo: ")
    assert "policy.grpo.learningRate" in message


# -- what is published -------------------------------------------------------------------------------------------------


def test_no_weight_that_is_no_number_is_published(
    workspace: PolicyWorkspace, result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = sft.save

    def spoilt(model: Any, start: Any, folder: Path) -> None:
        with torch.no_grad():
            model.model.language_model.norm.weight[5] = math.inf
        honest(model, start, folder)

    monkeypatch.setattr(sft, "save", spoilt)
    message = ended(workspace, workspace.sft(name="spoilt"), result)
    assert (
        "model/model.safetensors: tensor 'model.norm.weight' has weights that are infinite or not a number" in message
    )


FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn)
BAD = [(kind, value) for kind in FLOATS for value in (math.nan, math.inf, -math.inf)]


@pytest.mark.parametrize(("dtype", "value"), [pair for pair in BAD if pair[0] in FLOATS[:-1] or math.isnan(pair[1])])
def test_every_kind_of_float_is_looked_at(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    whole = {
        "a": torch.arange(-6, 6).to(dtype),
        "b": torch.full((3, 5), torch.finfo(dtype).max, dtype=dtype),
        "empty": torch.zeros(0, dtype=dtype),
        "n": torch.full((4,), 2**31 - 1, dtype=torch.int32),
    }
    save_file(whole, tmp_path / "m.safetensors")
    finite_weights.check(tmp_path)
    bad = whole["b"].float()
    bad[2, 4] = value
    save_file({**whole, "b": bad.to(dtype)}, tmp_path / "m.safetensors")
    with pytest.raises(NotFinite, match=r"m\.safetensors: tensor 'b'"):
        finite_weights.check(tmp_path)


# -- what is measured --------------------------------------------------------------------------------------------------


def test_scores_and_log_probabilities_that_are_no_numbers_stop_it(workspace: PolicyWorkspace) -> None:
    context = workspace.context(workspace.grpo())
    folder = context.input("reward").folder_of("model")
    encoder = Encoder(vlm.load_processor(folder), workspace.images)
    reward = RewardModel.load(folder)
    sha256 = workspace.training[0].image_sha256
    rows = [
        PromptResponse(sha256, "what?", "cyst"),
        PromptResponse(sha256, "what?", "mass"),
        PromptResponse(None, "?", "a"),
    ]
    assert np.isfinite(scorer.score(reward, encoder, rows)).all()
    offered = [["cyst", "mass"]] * 3
    contexts = ["<answer>"] * 3
    with torch.no_grad():
        reward.core.lm_head.weight[0, 0] = math.nan
        reward.core.model.language_model.norm.weight.fill_(math.nan)
    with pytest.raises(NotFinite, match="scores of the reward model"):
        scorer.score(reward, encoder, rows)
    with pytest.raises(NotFinite, match="log-probabilities of the options"):
        scoring.option_logprobs(InProcessSampler(model=reward.core), encoder, rows, contexts, offered, FORMAT)
