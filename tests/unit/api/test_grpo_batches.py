"""How GRPO's prompts of a step become TRL's batches."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.cycle_specs import make_spec

from medgr2_api.cycle import Preset
from medgr2_api.grpo_batches import GRPOBatches, UnevenBatches
from medgr2_api.policy import ResolvedGRPO
from medgr2_api.presets import resolve
from medgr2_api.unsupported import unsupported


def grpo(**changes: Any) -> ResolvedGRPO:
    return resolve(make_spec()).policy.grpo.model_copy(update=changes)


@pytest.mark.parametrize(
    ("prompts", "processes", "trainer", "served", "sizes"),
    [
        (64, 1, {}, False, (8, 64, 1)),
        (64, 1, {}, True, (8, 64, 64)),
        (64, 4, {}, True, (8, 16, 16)),
        (64, 8, {"per_device_train_batch_size": 4}, False, (4, 16, 2)),
        (64, 8, {"per_device_train_batch_size": 4}, True, (4, 16, 16)),
        (6, 1, {"per_device_train_batch_size": 12}, False, (12, 4, 2)),
        (64, 1, {"gradient_accumulation_steps": 2}, False, (256, 2, 1)),
        (4, 1, {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}, False, (8, 4, 1)),
        (64, 1, {"steps_per_generation": 4}, True, (8, 64, None)),
        (0, 4, {"per_device_train_batch_size": 256}, True, (8, None, None)),
    ],
)
def test_the_prompts_of_a_step_become_trl_s_batches(
    prompts: int, processes: int, trainer: dict[str, Any], served: bool, sizes: tuple[int | None, ...]
) -> None:
    found = GRPOBatches.of(grpo(prompts_per_step=prompts, trainer=trainer), processes, served=served)
    assert (found.rows, found.accumulation, found.at_once) == sizes
    if prompts and found.accumulation is not None:
        assert found.rows * found.accumulation * processes == prompts * 8


@pytest.mark.parametrize(
    ("prompts", "processes", "trainer", "said"),
    [
        (64, 6, {}, "no multiple of the 6 processes that train; take 66"),
        (64, 1, {"per_device_train_batch_size": 5}, "does not divide; take a divisor of 512"),
        (64, 1, {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}, "8 .* times 4 .*; leave"),
        (64, 1, {"gradient_accumulation_steps": 3}, "times 3"),
    ],
)
def test_what_does_not_divide_is_refused_with_what_would(
    prompts: int, processes: int, trainer: dict[str, Any], said: str
) -> None:
    with pytest.raises(UnevenBatches, match=said):
        GRPOBatches.of(grpo(prompts_per_step=prompts, trainer=trainer), processes)


def test_real_sizes_take_64_prompts_a_step_and_the_tiny_preset_what_its_options_say() -> None:
    for preset, prompts in ((Preset.DEFAULT, 64), (Preset.PAPER, 64), (Preset.MEDR1, 64), (Preset.TINY, 0)):
        assert resolve(make_spec(preset=preset)).policy.grpo.prompts_per_step == prompts


def test_validate_knows_the_processes() -> None:
    stages = [{"name": "grpo", "resources": {"limits": {"nvidia.com/gpu": 6}}}]
    problems = {problem.path: problem.message for problem in unsupported(make_spec(stages=stages))}
    assert "take 66" in problems["spec.policy.grpo.promptsPerStep"]
