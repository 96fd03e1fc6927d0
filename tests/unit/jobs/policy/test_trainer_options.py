"""What the training stages refuse before any model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.policy_fixtures import DATA, PolicyWorkspace
from transformers import TrainingArguments
from trl import GRPOConfig, SFTConfig

from medgr2_jobs.errors import ConfigError, DataError
from medgr2_jobs.models import vlm
from medgr2_jobs.policy.grpo_trainer import EpochSampler
from medgr2_jobs.stages import grpo, sft
from medgr2_jobs.stages.grpo import checkpoint_unit, total_steps
from medgr2_jobs.training.trainer import configured, trainer_options


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(vlm, "load_model", load)
    monkeypatch.setattr(vlm, "load_processor", load)


@pytest.mark.parametrize(
    ("trainer", "said"),
    [
        ({"warmup_step": 3}, "policy.sft.trainer.warmup_step: SFTConfig has no such option; did you mean"),
        ({"max_length": 1024}, "max_length: not to be set here: examples are never cut"),
        ({"learning_rate": 1.0}, "use 'learningRate' beside 'trainer'"),
        ({"num_train_epochs": 3}, "use 'numEpochs' beside 'trainer'"),
        ({"packing": True}, "packing: not to be set here"),
        ({"completion_only_loss": False}, "completion_only_loss: not to be set here"),
        ({"model_init_kwargs": {"trust_remote_code": True}}, "model_init_kwargs: not to be set here"),
        ({"max_steps": "many"}, "max_steps: 'many' is not a whole number"),
        ({"lr_scheduler_type": "sideways"}, "SFTConfig refuses these settings"),
    ],
)
def test_sft_refuses(workspace: PolicyWorkspace, trainer: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sft.run(workspace.context(workspace.sft(trainer)))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("trainer", "changes", "said"),
    [
        ({"lerning_rate": 1}, {}, "did you mean 'learning_rate'?"),
        ({"num_generations": 2}, {}, "use spec.policy.grpo.numGenerations"),
        ({"beta": 0.1}, {}, "use spec.policy.grpo.klCoefficient"),
        ({"reward_weights": [1, 2]}, {}, "use spec.policy.grpo.rewards"),
        ({"num_train_epochs": 2}, {}, "use 'numEpochs' beside 'trainer'"),
        ({"per_device_train_batch_size": 6}, {}, "generation_batch_size (6) must be divisible by num_generations (4)"),
        ({"auto_find_batch_size": True}, {}, "auto_find_batch_size is not supported"),
        ({"log_completions_hub_repo": "a/b"}, {}, "log_completions_hub_repo: not to be set here"),
        ({}, {"roles": (*DATA, "sft")}, "trains no reward model"),
    ],
)
def test_grpo_refuses(workspace: PolicyWorkspace, trainer: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        grpo.run(workspace.context(workspace.grpo(trainer, **changes)))
    assert said in str(caught.value)


def test_grpo_refuses_a_batch_larger_than_the_data(workspace: PolicyWorkspace) -> None:
    """TRL drops incomplete batches: it would train on nothing."""
    with pytest.raises(DataError, match="48 distinct prompts, and one generation batch takes 64"):
        grpo.run(workspace.context(workspace.grpo({"per_device_train_batch_size": 256})))


def test_a_whole_number_stays_a_float_where_the_library_wants_one() -> None:
    given = {"temperature": 4.0, "max_steps": 3.0, "top_k": 5, "max_grad_norm": "1e0", "log_completions": False}
    found = trainer_options(GRPOConfig, given, "policy.grpo.trainer")
    assert found == {"temperature": 4.0, "max_steps": 3, "top_k": 5, "max_grad_norm": 1.0, "log_completions": False}
    assert {name: type(value) for name, value in found.items()} == {
        "temperature": float,
        "max_steps": int,
        "top_k": int,
        "max_grad_norm": float,
        "log_completions": bool,
    }


def config(**changes: Any) -> GRPOConfig:
    return GRPOConfig(output_dir="x", use_cpu=True, bf16=False, num_generations=4, **changes)


@pytest.mark.parametrize(
    ("changes", "unit"),
    [
        ({}, 1),
        ({"gradient_accumulation_steps": 4}, 1),
        ({"num_iterations": 2}, 2),
        ({"steps_per_generation": 4, "gradient_accumulation_steps": 2}, 2),
        ({"steps_per_generation": 3, "gradient_accumulation_steps": 2, "num_iterations": 2}, 3),
    ],
)
def test_checkpoints_lie_where_a_generation_batch_is_used_up(changes: dict[str, Any], unit: int) -> None:
    assert checkpoint_unit(config(**changes)) == unit


def test_total_steps_counts_passes_and_epochs() -> None:
    args = config(per_device_train_batch_size=8, num_iterations=2, num_train_epochs=2, gradient_accumulation_steps=2)
    # 4 prompts at once → 5 generation batches of 21 prompts, each 2 x 2 micro-steps, 2 of them an optimizer step
    assert total_steps(args, 21) == 20
    assert total_steps(config(max_steps=3), 21) == 3


def test_an_epochs_order_depends_on_its_number_only() -> None:
    def sampler() -> EpochSampler:
        return EpochSampler(range(20), mini_repeat_count=2, batch_size=4, repeat_count=1, shuffle=True, seed=3)

    straight = sampler()
    epochs = []
    for epoch in range(3):
        straight.set_epoch(epoch)
        epochs.append(list(straight))
    assert epochs[0] != epochs[1] != epochs[2]
    resumed = sampler()
    resumed.set_epoch(2)
    assert list(resumed) == epochs[2]
    assert list(sampler()) == epochs[0]


@pytest.mark.parametrize("config", [TrainingArguments, SFTConfig, GRPOConfig])
@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "gpu"])
def test_checkpointing_of_activations_is_as_asked_for_by_either_name(
    config: type[TrainingArguments], gpu: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    # there is no GPU: no option that would look for one
    here: dict[str, Any] = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}

    def asked(**options: Any) -> bool:
        return bool(configured(config, options, field="x", **here).activation_checkpointing)

    assert asked() is gpu
    for wanted in (True, False):
        assert asked(gradient_checkpointing=wanted) is wanted
        assert asked(activation_checkpointing=wanted) is wanted
    with pytest.raises(ConfigError, match=r"x\.gradient_checkpointing: activation_checkpointing is its new name"):
        asked(gradient_checkpointing=True, activation_checkpointing=True)
