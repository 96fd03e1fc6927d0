"""Memory of a 7B policy under the settings that people choose, against what is known of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from medgr2_api.fit import memory
from medgr2_api.fit.known_models import known
from medgr2_api.fit.memory import GIB, BatchSize, MemoryPart, TrainingSetup
from medgr2_api.fit.shapes import ModelShape


def _model(name: str) -> ModelShape:
    found = known(name)
    assert found is not None
    return found


POLICY, REWARD = _model("Qwen2.5-VL-7B-Instruct"), _model("Qwen2.5-VL-3B-Instruct")
R = MemoryPart("R", REWARD.parameters * 2)
REFERENCE = MemoryPart("reference", POLICY.parameters * 4)
FULL = TrainingSetup(rank=0, batch=BatchSize(8, 852, 512, 8), checkpointing=True)
LORA = replace(FULL, rank=64)


def test_the_whole_model_with_reference_and_r_needs_more_than_any_card() -> None:
    need = memory.training_need(POLICY, FULL, R, REFERENCE)
    assert 165 * GIB < need.total < 185 * GIB
    parts = {part.name: part.bytes for part in need.parts}
    assert parts["weights"] == POLICY.parameters * 4
    assert parts["optimizer"] == POLICY.parameters * 8
    assert parts["gradients"] + parts["activations"] >= POLICY.parameters * 4


def test_data_parallel_processes_hold_buckets_and_zero_shares_out() -> None:
    alone = memory.training_need(POLICY, FULL, R).total
    eight = replace(FULL, processes=8)
    beside = memory.training_need(POLICY, eight, R).total
    two, three = (memory.training_need(POLICY, replace(eight, zero=stage), R).total for stage in (2, 3))
    assert beside > alone + POLICY.parameters * 3
    assert three < two < alone < beside
    assert two < 79 * GIB


def test_adapters_fit_where_the_whole_model_does_not() -> None:
    need = memory.training_need(POLICY, LORA, R)
    assert need.total < 40 * GIB
    assert {part.name: part.bytes for part in need.parts}["optimizer"] == POLICY.text.adapters(64) * 8


def test_running_layers_again_trades_activations() -> None:
    kept = memory.activations(POLICY, replace(LORA, checkpointing=False))
    again = memory.activations(POLICY, LORA)
    assert 8 * again < kept
    twice = memory.activations(POLICY, replace(LORA, batch=BatchSize(16, 852, 512, 16)))
    assert twice == 2 * again


def test_gradients_that_stay_count_beside_activations() -> None:
    once = memory.training_need(REWARD, FULL).total
    accumulated = memory.training_need(REWARD, replace(FULL, accumulation=4)).total
    assert accumulated > once


def test_keys_and_values_of_a_7b_model() -> None:
    assert memory.keys_and_values(POLICY, 1) == 57_344  # 28 layers · 2 · 4 heads · 128 · 2 bytes
    need = memory.reading_need(POLICY, BatchSize(56, 652, 512, 56), on_gpu=True, cached_tokens=65_536)
    assert {part.name: part.bytes for part in need.parts}["keys and values"] == 65_536 * 57_344


def test_main_memory_while_eight_processes_load() -> None:
    whole = memory.host_need(POLICY, 8, trained_whole=True, zero=0)
    shared = memory.host_need(POLICY, 8, trained_whole=True, zero=3)
    loading = {part.name: part.bytes for part in whole.parts}["weights while they are loaded"]
    assert loading == 8 * POLICY.parameters * 4
    assert shared.total < whole.total / 3


def test_four_bits_under_adapters_are_a_quarter_of_their_weights_in_bfloat16() -> None:
    plain = {part.name: part.bytes for part in memory.training_need(POLICY, LORA).parts}
    packed = {part.name: part.bytes for part in memory.training_need(POLICY, replace(LORA, quantized=True)).parts}
    linear = POLICY.text.layers * POLICY.text.linear
    assert plain["weights"] - packed["weights"] == pytest.approx(linear * (2 - 0.516), rel=1e-3)
    assert packed["weights"] < 0.45 * plain["weights"]  # embeddings, LM head and tower stay as they are
    largest = POLICY.text.hidden * POLICY.text.intermediate * 2  # unpacked
    assert packed["activations"] - plain["activations"] == pytest.approx(largest)
    assert packed["optimizer"] == plain["optimizer"]


def test_a_frozen_tower_has_no_gradients_and_keeps_no_activations() -> None:
    all_of_it, language = FULL, replace(FULL, tower_frozen=True)
    before, after = memory.training_need(POLICY, all_of_it), memory.training_need(POLICY, language)
    tower = POLICY.vision.parameters - POLICY.vision.joins
    assert 0.9 * POLICY.vision.parameters < tower < POLICY.vision.parameters
    optimizer = [{part.name: part.bytes for part in need.parts}["optimizer"] for need in (before, after)]
    assert optimizer[0] - optimizer[1] == 8 * tower
    assert memory.activations(POLICY, language) < memory.activations(POLICY, all_of_it)


def test_precision_says_how_large_a_frozen_base_and_activations_are() -> None:
    exact = replace(LORA, bfloat16=False)
    weights = [memory.training_need(POLICY, one).parts[0].bytes for one in (LORA, exact)]
    adapters = POLICY.text.adapters(64) * 4
    assert weights[1] - adapters == 2 * (weights[0] - adapters)
    assert memory.activations(POLICY, LORA) < memory.activations(POLICY, exact)


def test_eager_attention_keeps_its_matrix() -> None:
    kept = replace(LORA, checkpointing=False)
    matrix = memory.activations(POLICY, replace(kept, eager=True)) - memory.activations(POLICY, kept)
    assert matrix == pytest.approx(28.5 * 8 * 28 * 852**2 * 6)  # layers, rows, heads, pairs of tokens, bytes


def test_on_a_cpu_a_process_keeps_of_what_it_frees_no_more_than_there_was() -> None:
    def kept(rows: int) -> float:
        training = replace(LORA, on_gpu=False, checkpointing=False, batch=BatchSize(rows, 852, 512, rows))
        need = {part.name: part.bytes for part in memory.training_need(POLICY, training).parts}
        return need["process"] - memory.PROCESS

    tiny = replace(LORA, rank=1, on_gpu=False, checkpointing=False, batch=BatchSize(1, 10, 5, 1))
    need = {part.name: part.bytes for part in memory.training_need(POLICY, tiny).parts}
    assert kept(8) == kept(16) == 0.5 * GIB
    assert need["process"] - memory.PROCESS == need["gradients"] + need["activations"] < 0.5 * GIB
