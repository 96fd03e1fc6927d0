"""Presets: everything gets a value, it is known from where, and the user's word wins."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.cycle_documents import spec_with

from medgr2_api.cycle import CycleSpec, Preset
from medgr2_api.presets import _DEFAULT, PRESETS, ValueOrigin, resolve, resolve_with_origins
from medgr2_api.unsupported import OWNED_TRAINER_OPTIONS, TRAINERS, unsupported

UNUSED = {"curation.selection.precision", "curation.selection.k"}  # by the strategy Threshold


def _at(spec: CycleSpec, path: str) -> Any:
    value: Any = spec.dump()
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


@pytest.mark.parametrize("preset", Preset)
def test_everything_gets_a_value(preset: Preset) -> None:
    server = {"openAI": {"model": "m", "baseURL": "http://x"}, "distillation": {}}
    spec = spec_with({"preset": preset, "generator": server})
    resolved, origins = resolve_with_origins(spec)
    for path in _DEFAULT.keys() | PRESETS[preset].keys():
        if path not in UNUSED and not path.startswith("generator.scripted."):
            assert _at(resolved, path) is not None, path
    assert {origin.source for path, origin in origins.items() if not path.startswith("data.")} <= {
        "Default",
        "derived",
        preset.value,
    }
    assert resolve(resolved) == resolved


@pytest.mark.parametrize("preset", Preset)
def test_every_preset_selects_by_threshold(preset: Preset) -> None:
    """The rule of `Selection` allows `threshold` alone because of this."""
    assert _at(resolve(spec_with({"preset": preset})), "curation.selection.strategy") == "Threshold"


@pytest.mark.parametrize("preset", Preset)
def test_presets_set_no_option_that_belongs_to_the_contract(preset: Preset) -> None:
    for path, value in PRESETS[preset].items():
        if path in TRAINERS:
            assert not value.keys() & OWNED_TRAINER_OPTIONS.keys()
    tiny = "builtin://tiny-qwen2.5-vl"
    spec = spec_with(
        {
            "preset": preset,
            "generator": {"openAI": {"model": "m", "baseURL": "http://x"}},
            "policy": {"baseModel": tiny},
            "rewardModel": {"baseModel": tiny},
        }
    )
    assert unsupported(resolve(spec)) == []


def test_origins_name_who_spoke() -> None:
    spec = spec_with({"preset": "MedR1", "policy.grpo": {"numGenerations": 6}, "policy.sft.lora": {"rank": 8}})
    resolved, origins = resolve_with_origins(spec)
    assert origins["policy.grpo.numGenerations"] == ValueOrigin(6, "spec")
    assert origins["policy.grpo.klCoefficient"] == ValueOrigin(0.04, "MedR1")
    assert origins["policy.grpo.learningRate"] == ValueOrigin(1e-5, "derived")
    assert origins["policy.sft.lora"].source == "spec"
    assert origins["policy.sft.lora.alpha"] == ValueOrigin(16, "derived")
    assert resolved.policy.grpo.num_generations == 6


def test_zero_and_false_are_words_too() -> None:
    resolved = resolve(spec_with({"policy.grpo.klCoefficient": 0, "rewardModel.replayFraction": 0}))
    assert resolved.policy.grpo.kl_coefficient == 0
    assert resolved.reward_model.replay_fraction == 0


def test_trainer_options_are_merged_and_the_user_speaks_last() -> None:
    spec = spec_with({"preset": "Paper", "policy.grpo.trainer": {"loss_type": "dapo", "max_steps": "20"}})
    resolved, origins = resolve_with_origins(spec)
    assert resolved.policy.grpo.trainer == {"loss_type": "dapo", "max_steps": 20, "scale_rewards": "group"}
    assert origins["policy.grpo.trainer.loss_type"] == ValueOrigin("dapo", "spec")
    assert origins["policy.grpo.trainer.scale_rewards"] == ValueOrigin("group", "Paper")


@pytest.mark.parametrize(
    ("selection", "filled"),
    [
        ({}, {"strategy": "Threshold", "threshold": 3.0}),
        ({"threshold": 4}, {"strategy": "Threshold", "threshold": 4.0}),
        ({"strategy": "All"}, {"strategy": "All"}),
        ({"strategy": "TopK"}, {"strategy": "TopK", "k": 11_000}),
        ({"strategy": "RandomK", "k": 5}, {"strategy": "RandomK", "k": 5}),
        ({"strategy": "FittedPrecision"}, {"strategy": "FittedPrecision", "precision": 0.95}),
    ],
)
def test_a_strategy_gets_only_what_it_uses(selection: dict[str, Any], filled: dict[str, Any]) -> None:
    assert _at(resolve(spec_with({"curation.selection": selection})), "curation.selection") == filled


def test_parts_that_nobody_asked_for_stay_away() -> None:
    assert resolve(spec_with()).generator.scripted is None
    phantoms = {"data.sources": [{"name": "p", "format": "Phantom", "phantom": {}}], "generator": {"scripted": {}}}
    scripted = resolve(spec_with(phantoms)).generator.scripted
    assert scripted is not None
    assert scripted.error_rate == 0.45


def test_sources_follow_their_format() -> None:
    sources = [{"name": "a", "format": "OmniMedVQA", "uri": "a"}, {"name": "b", "format": "DICOM", "uri": "b"}]
    resolved, origins = resolve_with_origins(spec_with({"data.sources": sources}))
    assert [(source.role, source.allow_external) for source in resolved.data.sources] == [
        ("Seed", True),
        ("Images", False),
    ]
    assert origins["data.sources[1].allowExternal"] == ValueOrigin(False, "derived")


def test_resolving_changes_neither_the_spec_nor_the_tables() -> None:
    spec = spec_with()
    before, table = spec.dump(), repr(_DEFAULT)
    resolve(spec)
    assert spec.dump() == before
    assert repr(_DEFAULT) == table


def test_full_fine_tuning_gets_no_alpha() -> None:
    grpo = resolve(spec_with({"policy.grpo.lora": {"rank": 0}})).policy.grpo
    assert (grpo.lora.rank, grpo.lora.alpha, grpo.learning_rate) == (0, None, 1e-6)
    adapters = resolve(spec_with()).policy.grpo
    assert (adapters.lora.rank, adapters.lora.alpha, adapters.learning_rate) == (64, 128, 1e-5)


@pytest.mark.parametrize("preset", list(Preset))
def test_where_all_weights_are_trained_it_is_said_whether_the_vision_tower_is(preset: Preset) -> None:
    def frozen(sft: int, grpo: int, **loading: Any) -> bool | None:
        policy = {"sft": {"lora": {"rank": sft}}, "grpo": {"lora": {"rank": grpo}}, "loading": loading}
        changes = {f"policy.{name}": value for name, value in policy.items()}
        return resolve(spec_with({"preset": str(preset)} | changes)).policy.loading.freeze_vision_tower

    by_default = preset is Preset.DEFAULT  # of works that train it, and of the model that has to learn to see: no
    assert frozen(0, 0) is frozen(0, 8) is frozen(8, 0) is by_default
    assert frozen(8, 8) is None, "adapters never change it"
    assert frozen(0, 0, freezeVisionTower=not by_default) is not by_default
