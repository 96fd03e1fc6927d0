"""The reward model's folder, its head and its loss."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from medgr2_api.reward_model import Grades, RewardHead
from medgr2_api.training_spec import Adapters, FullFineTuning
from medgr2_jobs.errors import ConfigError
from medgr2_jobs.reward.model import LM_WEIGHT, RewardModel
from medgr2_jobs.reward.scorer import score
from medgr2_jobs.training.trainer import lora_config

ADAPTERS = Adapters(rank=4, alpha=8)


@pytest.mark.parametrize("head", list(RewardHead))
def test_save_and_load(bench, tmp_path, head):
    model = bench.model(head)
    model.save(tmp_path, bench.encoder.processor)
    loaded = RewardModel.load(tmp_path)
    assert loaded.info == model.info
    rows = bench.rows([2, 3])
    assert score(loaded, bench.encoder, rows).tolist() == score(model, bench.encoder, rows).tolist()
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]


@pytest.mark.parametrize("name", ["head.safetensors", "reward.json", "config.json"])
def test_a_missing_file_is_named(bench, tmp_path, name):
    bench.model().save(tmp_path, bench.encoder.processor)
    (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match=name):
        RewardModel.load(tmp_path)


def test_a_head_of_another_shape_is_refused(bench, tmp_path):
    bench.model(RewardHead.LAST_TOKEN).save(tmp_path, bench.encoder.processor)
    save_file({"output.weight": torch.zeros(1, 7), "output.bias": torch.zeros(1)}, tmp_path / "head.safetensors")
    with pytest.raises(ConfigError, match=r"head\.safetensors.*\(1, 7\)"):
        RewardModel.load(tmp_path)
    (tmp_path / "head.safetensors").write_bytes(b"pickle")
    with pytest.raises(ConfigError, match="not a safetensors file"):
        RewardModel.load(tmp_path)


def test_another_head_than_described_is_refused(bench, tmp_path):
    bench.model(RewardHead.LAST_TOKEN).save(tmp_path, bench.encoder.processor)
    info = json.loads((tmp_path / "reward.json").read_text())
    (tmp_path / "reward.json").write_text(json.dumps({**info, "head": "LastTokenAndLikelihood"}))
    with pytest.raises(ConfigError, match="LastTokenAndLikelihood"):
        RewardModel.load(tmp_path)
    (tmp_path / "reward.json").write_text(json.dumps({**info, "version": 9}))
    with pytest.raises(ConfigError, match="version"):
        RewardModel.load(tmp_path)


def test_a_backbone_without_some_weights_is_refused(bench, tmp_path):
    bench.model().save(tmp_path, bench.encoder.processor)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop(next(name for name in weights if "q_proj.weight" in name))
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="q_proj"):
        RewardModel.load(tmp_path)


def test_a_plain_model_is_refused(bench, tmp_path):
    shutil.copytree(bench.folder, tmp_path / "plain")
    with pytest.raises(ConfigError, match=r"rewardModel\.baseModel"):
        RewardModel.load(tmp_path / "plain")


def test_untrained_last_token_says_the_middle_grade(bench):
    model = RewardModel.fresh(bench.folder, RewardHead.LAST_TOKEN, Grades(), base="", train=False)
    np.testing.assert_allclose(score(model, bench.encoder, bench.rows([2])), 2.0)


@pytest.mark.parametrize("head", list(RewardHead))
def test_loss_is_the_papers(bench, head):
    """MSE in units of 8, and for the likelihood head the response's negative log-likelihood on good rows."""
    model = bench.model(head)
    rows = bench.rows([4])
    targets = torch.tensor([10.0, 6.0, 0.0, -6.0])
    batch = bench.encoder.batch(rows)
    found = model(labels=batch.labels, targets=targets, **batch.inputs)
    expected = (((found["scores"] - targets) / 8) ** 2).mean()
    if model.uses_likelihood:
        good = bench.encoder.batch(rows[:2])
        logits = model.core(**good.inputs).logits[:, :-1].float()
        nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), good.labels[:, 1:].flatten(), ignore_index=-100)
        expected = expected + LM_WEIGHT * nll
    assert found["loss"].item() == pytest.approx(expected.item(), abs=1e-5)


def test_no_good_row_in_a_batch_is_no_nan(bench):
    model = bench.model()
    batch = bench.encoder.batch(bench.rows([2]))
    assert torch.isfinite(model(labels=batch.labels, targets=torch.tensor([0.0, -6.0]), **batch.inputs)["loss"])


def test_merged_adapters_score_the_same(bench):
    model = bench.model()
    model.add_adapters(lora_config(ADAPTERS, task_type=None))
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    rows = bench.rows([2, 3])
    adapted = score(model, bench.encoder, rows)
    model.merge_adapters()
    np.testing.assert_allclose(score(model, bench.encoder, rows), adapted, atol=1e-4)
    assert np.abs(adapted - score(bench.model(), bench.encoder, rows)).max() > 1e-3


@pytest.mark.parametrize("lora", [FullFineTuning(rank=0), ADAPTERS], ids=["full", "lora"])
def test_activation_checkpointing_changes_no_gradient(bench, lora):
    """Our wrapper has to pass it on to the backbone; on a GPU it is the default."""
    found = []
    for saving in (False, True):
        model = bench.model(train=True)
        torch.manual_seed(1)
        model.add_adapters(lora_config(lora, task_type=None))
        if saving:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=None, every_n_layers=1, offload=False)
            assert model.core.model.language_model.is_activation_checkpointing
        batch = bench.encoder.batch(bench.rows([2, 2]))
        model(labels=batch.labels, targets=torch.tensor([10.0, 6.0, 0.0, -6.0]), **batch.inputs)["loss"].backward()
        found.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert any("backbone" in name for name in found[0])
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head", list(RewardHead))
@pytest.mark.parametrize("way", ["DeepSpeed", "autocast"])
def test_in_bfloat16_the_head_reads_in_float32(bench, head, way):
    model = bench.model(head, train=True)
    batch, targets = bench.encoder.batch(bench.rows([2, 3])), torch.tensor([10.0, 6, 0, -6, 10])
    exact = model(**batch.inputs, labels=batch.labels, targets=targets)
    inputs = dict(batch.inputs)
    if way == "DeepSpeed":  # it makes bfloat16 of every weight, the head's too, and of what goes in
        model.to(torch.bfloat16)
        inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
        rounded = model(**inputs, labels=batch.labels, targets=targets)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(**inputs, labels=batch.labels, targets=targets)
    assert rounded["scores"].dtype == rounded["loss"].dtype == torch.float32
    torch.testing.assert_close(rounded["scores"], exact["scores"], atol=0.3, rtol=0)
    rounded["loss"].backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.head.parameters())
