"""The shortcuts give what transformers gives, for each family, and are taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from medgr2_api import model_families
from medgr2_jobs.models import vlm
from medgr2_jobs.models.patches import qwen_vl
from medgr2_jobs.models.tiny import model as tiny_model
from medgr2_jobs.models.tiny import tokenizer

IMAGE, VIDEO, START, END, PAD = 8, 9, 6, 7, 0
_TOKENS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
_TEXT = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": PAD,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
}
_VISION = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
#: Windows of the first layer, of the whole picture in the second.
_QWEN2_5 = {"hidden_size": 32, "intermediate_size": 48, "window_size": 16, "out_hidden_size": 32,
            "fullatt_block_indexes": [1]}  # fmt: skip
_QWEN3 = {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32, "num_position_embeddings": 16,
          "deepstack_visual_indexes": [0]}  # fmt: skip
FAMILIES = {
    "qwen2_vl": {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2},
    "qwen2_5_vl": _QWEN2_5,
    "qwen3_vl": _QWEN3,
}


@pytest.fixture(scope="module", params=[name for name, family in model_families.FAMILIES.items() if family.counts_grid])
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(3)
    config = AutoConfig.for_model(
        request.param, text_config=_TEXT, vision_config={**_VISION, **FAMILIES[request.param]}, **_TOKENS
    )
    made = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").float()
    return qwen_vl.apply(made).train()


@pytest.fixture
def long_way(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Takes the shortcuts back for a while."""

    def undo(model: Any) -> None:
        for owner, name, _ in qwen_vl.places(model):
            monkeypatch.setattr(owner, name, getattr(owner, name).medgr2_original)

    return undo


def batch(*rows: tuple[int, tuple[int, int] | None, int], left: bool = False, seed: int = 0) -> dict[str, Any]:
    """Rows of so many words before a picture of so many patches (height, width), and words after it.

    Pictures of one size are the same picture.
    """
    made = torch.Generator().manual_seed(seed)
    ids = [[11] * before + ([IMAGE] * (size[0] * size[1] // 4) if size else []) + [12] * after
           for before, size, after in rows]  # fmt: skip
    length = max(map(len, ids))
    padded = [[PAD] * (length - len(row)) + row if left else row + [PAD] * (length - len(row)) for row in ids]
    tokens = torch.tensor(padded)
    sizes = [size for _, size, _ in rows if size]
    pictures = {size: torch.randn(size[0] * size[1], 3 * 2 * 4 * 4, generator=made) for size in sizes}
    return {
        "input_ids": tokens,
        "attention_mask": (tokens != PAD).long(),
        "mm_token_type_ids": (tokens == IMAGE).long(),
        "pixel_values": torch.cat([pictures[size] for size in sizes]),
        "image_grid_thw": torch.tensor([[1, *size] for size in sizes]),
    }


BATCHES = {
    "one size": batch((2, (4, 8), 3), (1, (4, 8), 5), (4, (4, 8), 1)),
    "padded left": batch((2, (4, 8), 3), (1, (4, 8), 6), left=True),
    "many sizes": batch((2, (4, 8), 3), (1, (8, 4), 2), (3, (4, 4), 2), (3, (4, 8), 2), (0, (12, 8), 2)),
    "ragged windows": batch((1, (6, 10), 2), (2, (6, 10), 3)),
    "without a picture": batch((2, None, 3), (1, (4, 4), 5), (6, None, 0)),
}


def answer(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits of the real tokens, and all gradients."""
    model.zero_grad()
    logits = model(**inputs).logits[inputs["attention_mask"].bool()]
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", BATCHES)
def test_same_logits_and_gradients(model: Any, name: str, long_way: Any) -> None:
    short, short_grads = answer(model, BATCHES[name])
    long_way(model)
    long, long_grads = answer(model, BATCHES[name])
    torch.testing.assert_close(short, long, rtol=1e-5, atol=1e-6)
    assert set(short_grads) == set(long_grads)
    for parameter, expected in long_grads.items():
        torch.testing.assert_close(short_grads[parameter], expected, rtol=1e-4, atol=1e-6, msg=parameter)


@pytest.mark.parametrize("name", BATCHES)
def test_same_positions(model: Any, name: str, long_way: Any) -> None:
    inputs = {key: value for key, value in BATCHES[name].items() if key != "pixel_values"}
    short = model.model.get_rope_index(**inputs)
    long_way(model)
    for found, expected in zip(short, model.model.get_rope_index(**inputs), strict=True):
        assert torch.equal(found, expected)


def test_positions_of_several_pictures_in_a_row(model: Any, long_way: Any) -> None:
    ids = torch.tensor([[11, IMAGE, IMAGE, 12, IMAGE, IMAGE, 13], [11, 12, 13, 14, 15, 16, 17]])
    inputs = {
        "input_ids": ids,
        "mm_token_type_ids": (ids == IMAGE).long(),
        "image_grid_thw": torch.tensor([[1, 2, 4], [1, 4, 2]]),
        "attention_mask": torch.ones_like(ids),
    }
    short = model.model.get_rope_index(**inputs)
    long_way(model)
    for found, expected in zip(short, model.model.get_rope_index(**inputs), strict=True):
        assert torch.equal(found, expected)


def test_one_pass_through_the_vision_tower_for_the_same_picture(model: Any) -> None:
    seen: list[int] = []
    handle = model.model.visual.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    model(**BATCHES["one size"])
    handle.remove()
    assert seen == [32]  # patches of one picture, not of three


def test_attention_is_called_once_for_windows_of_one_size(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def counted(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(query.shape)
        return real(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    different = batch((1, (4, 8), 2), (1, (8, 4), 2), seed=1)
    model.model.get_image_features(different["pixel_values"], different["image_grid_thw"])
    assert len(calls) == _VISION["depth"]


def test_taken_once(model: Any) -> None:
    before = type(model.model).get_rope_index
    qwen_vl.apply(model)
    assert type(model.model).get_rope_index is before


def test_loaded_and_built_models_take_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    taken: list[str] = []
    real = qwen_vl.apply

    def watched(model: Any) -> Any:
        taken.append(type(model).__name__)
        return real(model)

    monkeypatch.setattr(qwen_vl, "apply", watched)
    tiny_model.build(tokenizer.processor().tokenizer, 0).save_pretrained(tmp_path)
    assert len(taken) == 1
    vlm.load_model(tmp_path)
    assert len(taken) == 2


def test_training_after_a_look_in_inference_mode(model: Any) -> None:
    """What is remembered of a batch's layout serves a backward pass, whoever made it."""
    qwen_vl._made.cache_clear()
    with torch.inference_mode():
        model(**BATCHES["one size"])
    answer(model, BATCHES["one size"])


def test_weights_that_come_when_their_layer_is_called(model: Any) -> None:
    """As with DeepSpeed's Zero3, where a layer's weights are elsewhere until then."""
    layer = model.model.visual.patch_embed.proj
    whole = layer.weight.data
    expected = model(**BATCHES["one size"]).logits
    layer.weight.data = torch.empty(0)

    def gather(*_: Any) -> None:
        layer.weight.data = whole

    handle = layer.register_forward_pre_hook(gather)
    try:
        torch.testing.assert_close(model(**BATCHES["one size"]).logits, expected)
    finally:
        handle.remove()
        layer.weight.data = whole
