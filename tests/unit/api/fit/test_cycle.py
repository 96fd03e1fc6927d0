"""Whole cycles: which stages fit, what is said of those that do not, GPU-hours, time and disk."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medgr2_api.cycle import CycleSpec, ResolvedSpec
from medgr2_api.fit import gpus
from medgr2_api.fit.assumptions import Assumptions, Basis
from medgr2_api.fit.counts import DRAWN_PIXELS, data_of
from medgr2_api.fit.cycle import CycleFit, fit
from medgr2_api.fit.disk import BaseFiles, published
from medgr2_api.fit.known_models import known
from medgr2_api.fit.memory import GIB
from medgr2_api.fit.result import Hardware, ModelShapes, StageFit
from medgr2_api.presets import resolve
from medgr2_api.yaml_loader import load_cycle

EXAMPLES = Path(__file__).parents[4] / "examples"
EIGHT = {"numProcPerNode": 8, "resources": {"limits": {"nvidia.com/gpu": 8}}}
ONE = {"resources": {"limits": {"nvidia.com/gpu": 1}}}
#: SFT by adapters, GRPO of all weights.
WHOLE = {"baseModel": "Qwen/Qwen2.5-VL-7B-Instruct", "grpo": {"lora": {"rank": 0}}}
READERS = [{"name": name, **ONE} for name in ("score", "relabel", "reward", "evaluate")]


def spec(*stages: dict[str, Any], **changes: Any) -> ResolvedSpec:
    """A 7B policy and a 3B reward model."""
    document: dict[str, Any] = {
        "iterations": 2,
        "workspace": {"persistentVolumeClaim": {"claimName": "x"}},
        "data": {"sources": [{"name": "seed", "format": "VQAJsonl", "uri": "data/seed.jsonl"}]},
        "generator": {"openAI": {"model": "m", "baseURL": "http://localhost:8000/v1"}},
        "rewardModel": {"baseModel": "Qwen/Qwen2.5-VL-3B-Instruct"},
        "policy": WHOLE,
        "stages": [*READERS, *stages],
    }
    return resolve(CycleSpec.model_validate({**document, **changes}))


def reckon(known_spec: ResolvedSpec, hardware: Hardware | None = None, **values: Any) -> CycleFit:
    policy, reward = known(known_spec.policy.base_model), known(known_spec.reward_model.base_model)
    assert policy is not None
    assert reward is not None
    return fit(known_spec, ModelShapes(policy, reward), data_of(known_spec), hardware or Hardware(), **values)


def stage(result: CycleFit, name: str) -> StageFit:
    return next(found for found in result.stages if found.name == name)


def test_grpo_of_all_weights_of_a_7b_model_does_not_fit_one_gpu_and_what_would_is_said() -> None:
    result = reckon(spec({"name": "sft", **ONE}, {"name": "grpo", **ONE}))
    grpo = stage(result, "grpo")
    assert not result.fits
    assert not grpo.fits
    assert 165 < grpo.need.total / GIB < 195, "64 prompts a step keep their gradients"
    assert any("policy.grpo.lora: {rank: 64}" in change for change in grpo.advice)
    assert stage(result, "sft").fits
    advised = reckon(
        spec(
            {"name": "sft", **ONE},
            {"name": "grpo", **ONE},
            policy={"baseModel": "Qwen/Qwen2.5-VL-7B-Instruct", "grpo": {"lora": {"rank": 64}}},
        )
    )
    assert stage(advised, "grpo").fits
    needed = f"{stage(advised, 'grpo').need.total / GIB:,.0f} GiB"
    assert grpo.advice[0] == f"policy.grpo.lora: {{rank: 64}}: {needed}"  # as it then is, without a reference


def test_what_is_advised_fits_when_it_is_done() -> None:
    base = {"baseModel": "Qwen/Qwen2.5-VL-7B-Instruct", "grpo": {"numGenerations": 64, "lora": {"rank": 64}}}
    kept = {**base, "grpo": {**base["grpo"], "trainer": {"activation_checkpointing": False}}}  # type: ignore[dict-item]
    grpo = stage(reckon(spec({"name": "grpo", **ONE}, policy=kept)), "grpo")
    assert not grpo.fits
    assert grpo.advice[0].startswith("policy.grpo.trainer.activation_checkpointing: true")
    assert stage(reckon(spec({"name": "grpo", **ONE}, policy=base)), "grpo").fits


def test_zero2_on_a_node_makes_the_whole_model_fit() -> None:
    plain = stage(reckon(spec({"name": "grpo", **EIGHT})), "grpo")
    shared = stage(reckon(spec({"name": "grpo", **EIGHT, "deepspeed": "Zero2"})), "grpo")
    assert not plain.fits
    assert shared.fits
    assert shared.gpus == 8
    assert shared.gpu_hours == pytest.approx(8 * shared.seconds / 3600)


def test_a_model_of_real_size_without_a_gpu_is_refused() -> None:
    sft = stage(reckon(spec()), "sft")
    assert not sft.fits
    assert "8.3 G parameters without a GPU" in sft.problem
    assert "stages[sft].resources" in sft.advice[0]
    assert math.isnan(sft.seconds)
    here = stage(reckon(spec(), Hardware(gpus.named("H100"), local_gpus=1)), "sft")
    assert here.fits
    assert here.seconds > 0


def test_a_smaller_card_and_its_label() -> None:
    labelled = {**ONE, "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L4"}}
    evaluate = stage(reckon(spec({"name": "sft", **labelled})), "sft")
    assert evaluate.gpu is not None
    assert evaluate.gpu.name == "L4 24GB"
    assert evaluate.limit == evaluate.gpu.memory


def test_gpus_that_nothing_uses_are_told() -> None:
    idle = {"name": "sft", "numProcPerNode": 1, "resources": {"limits": {"nvidia.com/gpu": 8}}}
    assert "7 of its 8 GPUs stand idle" in stage(reckon(spec(idle)), "sft").advice[0]


def test_shards_share_the_work_of_stages_that_can_be_divided() -> None:
    others = [each for each in READERS if each["name"] != "score"]
    one = stage(reckon(spec()), "score")
    four = stage(reckon(spec(stages=[*others, {"name": "score", **ONE, "shards": 4}])), "score")
    assert four.seconds == pytest.approx(one.seconds / 4)
    assert four.gpus == 4


def test_a_vllm_samples_faster_on_all_gpus_of_the_stage_and_one_on_site_holds_none() -> None:
    def evaluate(engine: dict[str, Any], gpus_asked: int = 1) -> StageFit:
        others = [each for each in READERS if each["name"] != "evaluate"]
        own = {"name": "evaluate", "resources": {"limits": {"nvidia.com/gpu": gpus_asked}}}
        return stage(reckon(spec(stages=[*others, own], policy={**WHOLE, "engine": engine})), "evaluate")

    process, vllm = evaluate({"transformers": {}}), evaluate({"vllm": {}})
    assert vllm.seconds < process.seconds / 2
    assert evaluate({"vllm": {}}, 4).seconds == pytest.approx(vllm.seconds / 4)
    assert evaluate({"vllm": {}}, 4).advice == ()
    assert vllm.need.total > 2 * 8_292_166_656
    site = stage(reckon(spec(policy={**WHOLE, "engine": {"server": {"baseURL": "http://vllm:8000"}}})), "evaluate")
    assert site.need.total < GIB
    assert math.isnan(site.seconds)


def test_grpo_s_time_is_that_of_both_parts_of_its_gpus() -> None:
    lora = {"lora": {"rank": 64}}

    def grpo(engine: dict[str, Any]) -> StageFit:
        eight = {"name": "grpo", "resources": {"limits": {"nvidia.com/gpu": 8}}}
        policy = {**WHOLE, "sft": lora, "grpo": {**lora, "trainer": {"max_steps": 20}}, "engine": engine}
        return stage(reckon(spec(eight, policy=policy)), "grpo")

    half, most = grpo({"vllm": {}}), grpo({"vllm": {"rolloutGPUs": 1}})
    assert half.seconds < grpo({"transformers": {}}).seconds
    assert half.seconds != pytest.approx(most.seconds)
    assert math.isnan(grpo({"server": {"baseURL": "http://vllm:8000"}}).seconds)


def test_time_follows_steps_that_are_bounded_and_hardware() -> None:
    bounded = {**WHOLE, "sft": {"trainer": {"max_steps": 10}}}
    sft = stage(reckon(spec({"name": "sft", **ONE}, policy=bounded)), "sft")
    longer = {**WHOLE, "sft": {"trainer": {"max_steps": 20}}}
    assert stage(reckon(spec({"name": "sft", **ONE}, policy=longer)), "sft").seconds == pytest.approx(2 * sft.seconds)
    slow = stage(reckon(spec({"name": "sft", **ONE}, policy=bounded), Hardware(gpus.named("A100 80GB"))), "sft")
    assert slow.seconds > 3 * sft.seconds


def test_disk_counts_whole_models_of_every_iteration_and_three_checkpoints() -> None:
    chosen = spec()
    result = reckon(chosen, files=BaseFiles(policy=1e9, reward=2e9))
    parts = {part.name: part.bytes for part in result.disk.parts}
    assert parts["base models"] == 3e9
    assert parts["checkpoints"] == pytest.approx(3 * 12 * 8_292_166_656)  # GRPO trains all weights
    assert parts["images"] == 20_000 * 401_408 * 1.5
    assert result.disk_limit == 0
    claim = {
        "volumeClaimTemplate": {
            "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "100Gi"}}}
        }
    }
    small = reckon(spec(workspace=claim))
    assert small.disk_limit == 100 * GIB
    assert not small.disk_fits
    assert not small.fits


def test_adapters_that_stand_on_the_base_are_published_alone() -> None:
    def models(**policy: Any) -> float:
        disk = reckon(spec(policy={"baseModel": "Qwen/Qwen2.5-VL-7B-Instruct", **policy})).disk
        return {part.name: part.bytes for part in disk.parts}["models"]

    rank = {"lora": {"rank": 64}}
    policy, reward = known("Qwen2.5-VL-7B"), known("Qwen2.5-VL-3B")
    assert policy is not None
    assert reward is not None
    r, whole, adapters = 2 * published(reward), published(policy), published(policy, 64)
    assert models(sft=rank, grpo=rank) == pytest.approx(r + 4 * adapters)
    assert models(sft=rank, grpo={"lora": {"rank": 32}}) == pytest.approx(r + 2 * adapters + 2 * whole)
    assert models(sft=rank, grpo={"lora": {"rank": 0}}, initFrom="Previous") == pytest.approx(r + 4 * whole)


def test_the_base_of_adapters_is_in_bfloat16_unless_they_are_merged() -> None:
    def weights(rank: int) -> float:
        policy = {**WHOLE, "sft": {"lora": {"rank": 64}}, "grpo": {"lora": {"rank": rank}}}
        need = stage(reckon(spec({"name": "grpo", **ONE}, policy=policy)), "grpo").need
        return {part.name: part.bytes for part in need.parts}["weights"]

    assert weights(64) == pytest.approx(2 * 8_292_166_656, rel=0.05)
    assert weights(32) == pytest.approx(4 * 8_292_166_656, rel=0.05)


def test_data_that_is_drawn_is_counted_and_other_data_is_guessed_and_told() -> None:
    drawn = resolve(load_cycle(EXAMPLES / "quickstart.yaml").spec)
    data = data_of(drawn)
    assert (data.seed_questions, data.images, data.benchmark_questions) == (480, 1630, 440)
    assert data.guessed == ()
    guessed = data_of(spec())
    assert guessed.benchmark_questions == 0
    assert [text.partition(" ")[2] for text in guessed.guessed] == ["seed questions", "images"]
    assert data_of(spec(), seed=7, images=8, benchmark=9).guessed == ()


def test_a_phantom_is_as_large_as_it_is_drawn() -> None:
    from medgr2_jobs.data import synthetic_images

    assert synthetic_images.SIZE**2 == DRAWN_PIXELS


def test_the_quickstart_fits_a_laptop() -> None:
    drawn = resolve(load_cycle(EXAMPLES / "quickstart.yaml").spec)
    result = reckon(drawn, Hardware(host_memory=8 * GIB))
    assert result.fits
    assert result.gpu_hours == 0
    assert set(result.untimed) == {found.name for found in result.stages}


def test_every_assumption_says_what_it_is_and_where_it_is_from() -> None:
    for one in Assumptions().all():
        assert one.what
        assert one.basis is Basis.ASSUMED or one.source
    slower = replace(Assumptions(), training_use=replace(Assumptions().training_use, value=0.165))
    sft = spec({"name": "sft", **ONE})
    assert stage(reckon(sft, known=slower), "sft").seconds == pytest.approx(2 * stage(reckon(sft), "sft").seconds)


def test_a_policy_is_reckoned_as_it_is_held() -> None:
    """A 7B policy on 24 GB."""
    card, sft = {"resources": {"limits": {"nvidia.com/gpu": 1}}}, {"lora": {"rank": 16}}
    small = {"per_device_train_batch_size": 1, "activation_checkpointing": True}

    def fitted(**policy: Any) -> StageFit:
        held = {"baseModel": "Qwen/Qwen2.5-VL-7B-Instruct", "sft": {**sft, "trainer": small}, "grpo": sft, **policy}
        return stage(reckon(spec({"name": "sft", **card}, policy=held), Hardware(gpus.named("RTX 4090"))), "sft")

    seven, packed = fitted(), fitted(loading={"quantization": "NF4"})
    assert packed.fits
    assert packed.need.total < 0.6 * seven.need.total
    assert packed.seconds == pytest.approx(seven.seconds * Assumptions().unpacking.value)
    exact = fitted(loading={"precision": "Float32"})
    assert not exact.fits
    assert any("policy.loading: {quantization: NF4}" in advice for advice in exact.advice)
    assert exact.host is not None
    assert seven.host is not None
    assert exact.host.total > seven.host.total
    whole = {"sft": {"lora": {"rank": 0}}}
    trained, frozen = (fitted(**whole, loading={"freezeVisionTower": one}) for one in (False, True))
    assert frozen.need.total < trained.need.total
    assert frozen.seconds < trained.seconds
