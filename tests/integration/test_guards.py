"""Runs that are ruined end early, and say of what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from medgr2_api.stage_contract import RESULT_PATH_ENV, ExitCode, StageRequest, StageResult
from medgr2_jobs.errors import ConstantReward, ImageIgnored, ImageTokensMismatch, KLOutOfBounds, LogprobsDisagree
from medgr2_jobs.models import image_check, vlm
from medgr2_jobs.models.vlm import Encoder, PromptResponse
from medgr2_jobs.policy import fine_tuning, rewards
from medgr2_jobs.training import guards
from medgr2_jobs.training.guards import constant_reward, kl_out_of_bounds, logprobs_disagree
from tests.support import policy_fixtures
from tests.support.policy_fixtures import PolicyWorkspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> PolicyWorkspace:
    return policy_fixtures.build(tmp_path_factory.mktemp("workspace"))


@pytest.fixture
def result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(RESULT_PATH_ENV, str(tmp_path / "result.json"))
    return tmp_path / "result.json"


def ended(workspace: PolicyWorkspace, request: StageRequest, result: Path) -> StageResult:
    assert workspace.run(request, expect=ExitCode.CONFIG) is None
    return StageResult.model_validate_json(result.read_text())


class Loaded:
    def __init__(self, workspace: PolicyWorkspace) -> None:
        folder = workspace.context(workspace.sft()).input("prepare").folder_of("models/policy")
        self.model = vlm.load_model(folder)
        self.encoder = Encoder(vlm.load_processor(folder), workspace.images)
        images = sorted({row.image_sha256 for row in workspace.training})
        self.rows = [PromptResponse(images[index % 6], "What is it?", f"ring {index}") for index in range(12)]


def blind(model: Any) -> None:
    """What the vision tower says goes nowhere."""
    with torch.no_grad():
        model.model.visual.merger.mlp[2].weight.zero_()
        model.model.visual.merger.mlp[2].bias.zero_()


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_a_model_that_sees_is_left_as_it_is(workspace: PolicyWorkspace) -> None:
    loaded = Loaded(workspace)
    loaded.model.train()
    before = torch.get_rng_state()
    image_check.check(loaded.model, loaded.encoder, loaded.rows)
    assert torch.equal(torch.get_rng_state(), before), "what is trained afterwards would depend on it"
    assert loaded.model.training
    assert all(value.grad is None for value in loaded.model.parameters())


def test_a_blind_model_is_told_from_one_that_sees(workspace: PolicyWorkspace) -> None:
    loaded = Loaded(workspace)
    blind(loaded.model)
    with pytest.raises(ImageIgnored, match="to 4 questions: the model does not see"):
        image_check.check(loaded.model, loaded.encoder, loaded.rows)
    image_check.check(loaded.model, loaded.encoder, [PromptResponse(None, "What?", "ring")])  # no picture, no opinion


@pytest.mark.parametrize("more", [1, -1])
def test_features_and_tokens_are_counted(
    workspace: PolicyWorkspace, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    loaded = Loaded(workspace)
    count = type(loaded.encoder.pictures).count
    monkeypatch.setattr(type(loaded.encoder.pictures), "count", lambda self, name: count(self, name) + more)
    with pytest.raises(ImageTokensMismatch, match=f"makes 4 features .* leaves {4 + more} tokens"):
        image_check.check(loaded.model, loaded.encoder, loaded.rows)


def test_a_blind_policy_is_not_trained(
    workspace: PolicyWorkspace, result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = vlm.load_model

    def spoilt(*given: Any, **named: Any) -> Any:
        model = honest(*given, **named)
        blind(model)
        return model

    monkeypatch.setattr(vlm, "load_model", spoilt)
    monkeypatch.setattr(fine_tuning, "train", lambda *_: pytest.fail("it was trained"))
    for rank in (0, 4):
        assert ended(workspace, workspace.sft(rank=rank, name="blind"), result).reason == "ImageIgnored"


# -- GRPO --------------------------------------------------------------------------------------------------------------


def log(count: int, **figures: float) -> list[dict[str, float]]:
    return [{"step": step, "loss": 0.1, **figures} for step in range(count)]


def test_a_reward_that_never_differs_ends_it_after_a_while() -> None:
    constant = {"reward": 0.2, "frac_reward_zero_std": 1.0, "match": 0.0}
    constant_reward(log(99, **constant))
    with pytest.raises(ConstantReward, match=r"last 100 steps got the reward 0\.2"):
        constant_reward(log(100, **constant))
    constant_reward(log(100, **{**constant, "match": 1.0}))  # every answer is right: nothing is wrong
    constant_reward([*log(1, reward=0.3, frac_reward_zero_std=1.0), *log(99, **constant)])
    constant_reward([*log(99, **constant), {"reward": 0.2, "frac_reward_zero_std": 0.5}])
    with pytest.raises(ConstantReward):  # the last entry of a run has no reward
        constant_reward([*log(100, **constant), {"train_runtime": 1.0}])


def test_a_policy_that_runs_away_ends_it_but_a_single_step_does_not() -> None:
    kl_out_of_bounds(log(50, kl=9.0))
    kl_out_of_bounds([*log(19, kl=1.0), {"kl": 1e6}])
    kl_out_of_bounds(log(19, kl=1e6))
    kl_out_of_bounds(log(100, reward=1.0))
    with pytest.raises(KLOutOfBounds, match=r"11\.0 nats a token"):
        kl_out_of_bounds([*log(9, kl=1.0), *log(20, kl=11.0)])


def test_grpo_looks_at_both(workspace: PolicyWorkspace, result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "_KL_STEPS", 2)
    monkeypatch.setattr(guards, "_MOST_KL", -1.0)
    run_away = ended(workspace, workspace.grpo(name="kl", klCoefficient=0.04), result)
    assert (run_away.reason, run_away.exit_code) == ("KLOutOfBounds", ExitCode.CONFIG)
    monkeypatch.setattr(guards, "_CONSTANT_STEPS", 2)
    monkeypatch.setattr(rewards.PolicyReward, "reward", _nothing)
    assert ended(workspace, workspace.grpo(name="constant"), result).reason == "ConstantReward"


def _nothing(self: Any, prompts: Any, completions: Any, **_: Any) -> list[float]:
    return [0.0] * len(completions)


def test_a_server_of_other_weights_ends_it_but_a_single_step_does_not() -> None:
    name = "sampling/sampling_logp_difference/mean"
    logprobs_disagree(log(20, **{name: 0.1}))
    logprobs_disagree([*log(20, **{name: 0.1}), {name: 9.0}, {name: 9.0}])
    logprobs_disagree(log(20, kl=1.0))
    for value in (0.5, float("nan")):
        with pytest.raises(LogprobsDisagree, match="another model"):
            logprobs_disagree(log(3, **{name: value}))
