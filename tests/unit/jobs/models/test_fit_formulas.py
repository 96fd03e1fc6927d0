"""The formulas of `medgr2 plan --fit` against what torch and transformers do: parameters, activations, files.

Whole processes are measured by `make bench NAME=fit`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bench import _models
from bench.training import noise
from peft import get_peft_model
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

from medgr2_api.fit import disk, memory, model_files
from medgr2_api.fit.known_models import CONFIGS, known
from medgr2_api.fit.memory import BatchSize, TrainingSetup
from medgr2_api.fit.shapes import from_config
from medgr2_api.training_spec import Adapters
from medgr2_jobs.models import vlm
from medgr2_jobs.models.tiny import model as tiny_model
from medgr2_jobs.models.tiny import tokenizer as tiny_tokenizer
from medgr2_jobs.models.vlm import PromptResponse
from medgr2_jobs.store.images import ImageStore
from medgr2_jobs.training.trainer import lora_config

#: Large enough that what is not in the formula (biases, norms, positions) does not count.
SHAPE = {
    "text": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4},
    "vision": {"depth": 4, "hidden_size": 64, "intermediate_size": 256, "num_heads": 2, "fullatt_block_indexes": [3]},
    "image_tokens": 64,
    "least_image_tokens": 64,
}
ROWS, RANK = 2, 8


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_that_transformers_makes(name: str) -> None:
    config: Any = CONFIG_MAPPING[CONFIGS[name]["model_type"]].from_dict(CONFIGS[name])
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    model.tie_weights()
    found = known(name)
    assert found is not None
    assert found.parameters == sum(weight.numel() for weight in model.parameters())


def test_the_built_in_model_is_counted() -> None:
    found = known("builtin://tiny-qwen2.5-vl")
    real = tiny_model.build(tiny_tokenizer.processor().tokenizer, 0)
    assert found is not None
    assert found.parameters == pytest.approx(sum(weight.numel() for weight in real.parameters()), rel=0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fit") / "model"
    _models.build(path, SHAPE)
    return path


def test_a_folder_tells_shape_parameters_and_bytes(folder: Path) -> None:
    found = model_files.read(folder)
    config = json.loads((folder / "config.json").read_text())
    assert "by its weights" in found.shape.source
    assert found.shape.counted == from_config(config, "here").parameters  # by its formula
    assert found.bytes == (folder / "model.safetensors").stat().st_size
    assert found.shape.image_tokens(1) == 64  # what its processor makes of a smaller picture


@pytest.mark.parametrize("rank", [0, RANK])
def test_activations_are_what_autograd_keeps(folder: Path, tmp_path: Path, rank: int) -> None:
    model = vlm.load_model(folder, train=True)
    if rank:
        model = get_peft_model(model, lora_config(Adapters(rank=rank, alpha=rank)))
    core = model.get_base_model() if rank else model
    store = ImageStore(tmp_path)
    names = [store.add(picture, 10**6).sha256 for picture in noise(ROWS, 0)]
    encoder = vlm.Encoder(vlm.load_processor(folder), store)
    batch = encoder.batch([PromptResponse(name, "What does the image show?", "a cyst " * 8) for name in names])
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, Any] = {}  # the tensors stay alive, so that no storage is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        vlm.response_logprobs(core, batch)
    measured = sum(size for size, _ in kept.values())

    shape, length = model_files.read(folder).shape, batch.inputs["input_ids"].shape[1]
    training = TrainingSetup(rank=rank, batch=BatchSize(ROWS, length, 64, ROWS), on_gpu=False)
    layer = memory.text_activations(shape, frozen=rank > 0, halved=False, rank=rank)
    half = 0.5 * ROWS * length * layer  # of the layer at work, which has not been counted as kept
    predicted = memory.activations(shape, training) - half
    if not rank:
        patches = ROWS * 64 * shape.vision.merge**2
        predicted -= 0.5 * patches * memory.vision_activations(shape.vision, halved=False)
    assert measured == pytest.approx(predicted, rel=0.05)


def test_files_are_as_large_as_is_reckoned(folder: Path, tmp_path: Path) -> None:
    shape = model_files.read(folder).shape
    model = vlm.load_model(folder, train=True)
    model.save_pretrained(tmp_path / "whole")
    whole = sum(path.stat().st_size for path in (tmp_path / "whole").iterdir())
    assert disk.published(shape) == pytest.approx(whole, rel=0.1)
    adapted = get_peft_model(model, lora_config(Adapters(rank=RANK, alpha=RANK)))
    trained = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert sum(weight.numel() for weight in trained.values()) == shape.text.adapters(RANK)
    optimizer = torch.optim.AdamW(trained.values())
    for weight in trained.values():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    save_file({name: weight.detach().contiguous() for name, weight in trained.items()}, tmp_path / "adapters")
    written = sum((tmp_path / name).stat().st_size for name in ("optimizer.pt", "adapters"))
    assert disk.checkpoint(shape, Adapters(rank=RANK, alpha=RANK)) == pytest.approx(written, rel=0.1)
