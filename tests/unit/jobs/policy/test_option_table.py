"""The table by which cycles are validated is that of the installed libraries."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from trl.trainer import grpo_trainer, sft_trainer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.sft_config import SFTConfig

import medgr2_api
from medgr2_api.trainer_options import TRAINERS
from medgr2_jobs.errors import ConfigError
from medgr2_jobs.training import option_table, trainer


def test_the_contract_has_the_installed_options() -> None:
    written = (Path(medgr2_api.__file__).parent / "trainer_options.json").read_text(encoding="utf-8")
    assert written == option_table.text(), "make trainer-options"
    assert {config.__name__ for config in option_table.CONFIGS} == set(TRAINERS.values())


def test_choices_that_no_type_names_are_those_of_the_trainers() -> None:
    source = {SFTConfig: inspect.getsource(sft_trainer), GRPOConfig: inspect.getsource(grpo_trainer)}
    for (config, option), choices in option_table._CHOICES.items():
        for choice in choices:
            assert f'"{choice}"' in source[config], f"{config.__name__}.{option}: {choice}"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"optim": "lomo"}, "lomo_optim"),
        ({"optim": "galore_adamw", "optim_target_modules": ["attn"]}, "galore_torch"),
        ({"optim": "schedule_free_adamw"}, "schedulefree"),
        ({"optim": "grokadamw"}, "grokadamw"),
        ({"optim": "adamw_torch_4bit"}, "torchao"),
        ({"use_liger_kernel": True}, "liger_kernel"),
    ],
)
def test_an_option_whose_package_is_missing_is_a_wrong_setting(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        trainer.configured(GRPOConfig, options, field="policy.grpo.trainer", output_dir="x", num_generations=8)
    assert str(caught.value).startswith("policy.grpo.trainer: ")


def test_options_that_need_nothing_are_taken() -> None:
    for optim in ("adamw_torch", "adafactor", "sgd"):
        args = trainer.configured(SFTConfig, {"optim": optim}, field="policy.sft.trainer", output_dir="x")
        assert args.optim == optim
