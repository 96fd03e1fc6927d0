"""A trainer option that the library does not take is refused by whoever validates a cycle, without the library."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.cycle_documents import spec_with

from medgr2_api.presets import PRESETS, resolve
from medgr2_api.trainer_options import TRAINERS
from medgr2_api.unsupported import unsupported


def found(path: str, options: dict[str, Any]) -> dict[str, str]:
    """Option → what is wrong with it."""
    student = {"generator.distillation.termsAllowTraining": True} if path.startswith("generator.") else {}
    problems = unsupported(spec_with({path: options, **student}))
    assert all(problem.path.startswith(f"spec.{path}.") for problem in problems)
    return {problem.path.rpartition(".")[2]: problem.message for problem in problems}


@pytest.mark.parametrize("path", TRAINERS)
def test_a_typo_is_found_with_the_nearest_name(path: str) -> None:
    wrong = found(path, {"max_stpes": 300, "warmup_step": 3, "weight_decay": 0.1})
    assert set(wrong) == {"max_stpes", "warmup_step"}
    assert f"{TRAINERS[path]} has no such option; did you mean 'max_steps'?" in wrong["max_stpes"]
    assert "did you mean 'warmup_steps'?" in wrong["warmup_step"]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("max_steps", "many", "'many' is not a whole number"),
        ("max_steps", 1.5, "1.5 is not a whole number"),
        ("max_steps", True, "True is not a whole number"),
        ("max_grad_norm", "much", "'much' is not a number"),
        ("tf32", "yes", "'yes' is not true or false"),
        ("lr_scheduler_type", "cosin", "'cosin' is not one of"),
        ("lr_scheduler_type", "cosin", "did you mean 'cosine'?"),
        ("optim", "adamw8bit", "did you mean 'adamw_8bit'?"),
        ("warmup_steps", [3], "[3] is not"),
    ],
)
def test_a_value_of_the_wrong_kind_is_found(option: str, value: Any, said: str) -> None:
    assert said in found("policy.sft.trainer", {option: value})[option]


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("policy.grpo.trainer", {"scale_rewards": False, "loss_type": "dr_grpo", "temperature": 1, "top_p": 0.9}),
        ("policy.grpo.trainer", {"generation_kwargs": {"no_repeat_ngram_size": 3}, "max_steps": 10.0}),
        ("policy.sft.trainer", {"optim": "adamw_8bit", "lr_scheduler_kwargs": {"num_cycles": 2}, "save_steps": 0.1}),
        ("rewardModel.training.trainer", {"max_grad_norm": "1e0", "adam_beta2": 0.98, "optim_args": None}),
    ],
)
def test_what_the_library_takes_passes(path: str, options: dict[str, Any]) -> None:
    assert found(path, options) == {}


def test_every_preset_passes() -> None:
    for preset in PRESETS:
        spec = resolve(spec_with({"preset": preset}))
        assert [problem for problem in unsupported(spec) if "trainer" in problem.path.lower()] == []


def test_loss_types_are_those_of_their_own_trainer() -> None:
    assert "did you mean 'dr_grpo'?" in found("policy.grpo.trainer", {"loss_type": "drgpo"})["loss_type"]
    assert "is not one of nll, dft" in found("policy.sft.trainer", {"loss_type": "grpo"})["loss_type"]
