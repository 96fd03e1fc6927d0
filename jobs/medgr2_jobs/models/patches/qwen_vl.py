"""Shorter ways through transformers' Qwen2-VL family: the same numbers, in fewer and larger steps.

transformers (5.23) goes through a batch picture by picture and row by row. On a CPU, and wherever flash attention is
missing, that is a third of a training step; and GRPO sends a prompt's picture through the vision tower once for every
completion. What a shortcut does not cover (videos, several pictures in a row, windows of several sizes, other kinds of
attention) goes the library's way.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional

from medgr2_api.model_families import FAMILIES

from . import registry

_IMAGE = 1  # in mm_token_type_ids
_GRIDS = 256  # batches whose layout is remembered
_GIVEN = {"position_ids", "window_index", "cu_window_seqlens"}  # what a caller may have made beforehand


def apply(model: Any) -> Any:
    """Changes the classes that a model is made of, so that every model of its family takes the shortcuts.

    Args:
        model: as it was loaded, on its device; one of another family is left as it is.

    Returns:
        The model.
    """
    if FAMILIES[model.config.model_type].counts_grid and registry.QWEN_VL.applies(model.device):
        for owner, name, shortcut in places(model):
            registry.replace(owner, name, shortcut)
    return model


def places(model: Any) -> Iterator[tuple[Any, str, Callable[..., Any]]]:
    """What is replaced: class or module, attribute, shortcut. (`attribute.medgr2_original` is the library's own.)"""
    for kind in {type(part) for part in model.modules()}:
        for ending, method, shortcut in _OF_CLASSES:
            if kind.__name__.endswith(ending):
                yield kind, method, shortcut
    home = sys.modules[type(model).__module__]
    for name, shortcut in _OF_MODULES.items():
        if hasattr(home, name):
            yield home, name, shortcut


def _embed_patches(original: Callable[..., Any], module: Any, patches: torch.Tensor) -> torch.Tensor:
    """Patches (N, D) → (N, H). The library's convolution has one position per patch, so it is a matrix product."""
    weight = module.proj.weight
    if not weight.numel():  # Zero3 brings it when the layer is called
        embedded: torch.Tensor = original(module, patches)
        return embedded
    return functional.linear(patches.to(weight.dtype), weight.flatten(1), module.proj.bias)


def _attend(
    original: Callable[..., Any],
    module: Any,
    hidden_states: torch.Tensor,
    cu_seqlens: torch.Tensor,
    position_embeddings: Any = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Vision attention over (N, H): windows of one size are one batch; the library calls attention for each."""
    lengths = set(cu_seqlens.diff().tolist())
    if module.config._attn_implementation != "sdpa" or len(lengths) != 1:
        attended: torch.Tensor = original(
            module, hidden_states, cu_seqlens=cu_seqlens, position_embeddings=position_embeddings, **kwargs
        )
        return attended
    count, heads = len(hidden_states), module.num_heads
    rotate = sys.modules[type(module).__module__].apply_rotary_pos_emb_vision
    query, key, value = module.qkv(hidden_states).view(count, 3, heads, -1).unbind(1)
    query, key = rotate(query, key, *position_embeddings)
    (length,) = lengths

    def windows(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.view(-1, length, *tensor.shape[1:]).transpose(1, 2)

    mixed = functional.scaled_dot_product_attention(windows(query), windows(key), windows(value), scale=module.scaling)
    projected: torch.Tensor = module.proj(mixed.transpose(1, 2).reshape(count, -1))
    return projected


def _positions(
    original: Callable[..., Any],
    model: Any,
    input_ids: torch.Tensor,
    mm_token_type_ids: torch.Tensor,
    image_grid_thw: torch.Tensor | None = None,
    video_grid_thw: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions int64 (3, B, T) of time, height and width, and (B, 1) of how far behind the tokens they end.

    A picture's tokens count its rows and columns from where it begins; the text goes on after the longer side.
    """
    real = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
    image_tokens = (mm_token_type_ids == _IMAGE) & real.bool()
    place = real.cumsum(-1) - 1  # among the real tokens
    first = place.masked_fill(~image_tokens, place.shape[1]).amin(-1, keepdim=True)
    inside, count = place - first, image_tokens.sum(-1, keepdim=True)
    has, pictures = count.squeeze(1) > 0, 0 if image_grid_thw is None else len(image_grid_thw)
    one_each = int(has.sum()) == pictures and bool(
        (image_tokens == ((inside >= 0) & (inside < count) & real.bool())).all()
    )
    if video_grid_thw is not None or image_grid_thw is None or not one_each or bool((image_grid_thw[:, 0] != 1).any()):
        result: tuple[torch.Tensor, torch.Tensor] = original(
            model,
            input_ids,
            mm_token_type_ids=mm_token_type_ids,
            image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw,
            attention_mask=attention_mask,
            **kwargs,
        )
        return result
    sides = place.new_ones(len(place), 2)
    sides[has] = image_grid_thw[:, 1:] // model.config.vision_config.spatial_merge_size
    longest, columns = sides.amax(-1, keepdim=True), sides[:, 1:]
    text = place - (count - longest) * ((inside >= count) & (count > 0))
    axes = (first, first + inside // columns, first + inside % columns)
    positions = torch.stack([torch.where(image_tokens, axis, text) for axis in axes]) * real
    return positions, positions.amax((0, 2))[:, None] + 1 - real.sum(-1, keepdim=True)


def _features(
    original: Callable[..., Any],
    model: Any,
    pixel_values: torch.Tensor,
    image_grid_thw: torch.Tensor | None = None,
    **kwargs: Any,
) -> Any:
    """Features of pictures: each different picture goes through the vision tower once.

    (`last_hidden_state` of the result then has the different pictures only; no one reads it.)
    """
    first = [] if image_grid_thw is None else _first_of_each(pixel_values, image_grid_thw)
    chosen = sorted(set(first))
    if len(chosen) == len(first):
        return original(model, pixel_values, image_grid_thw, **kwargs)
    assert image_grid_thw is not None
    pieces = pixel_values.split(image_grid_thw.prod(-1).tolist())
    output = original(model, torch.cat([pieces[index] for index in chosen]), image_grid_thw[chosen], **kwargs)
    at = {index: place for place, index in enumerate(chosen)}

    def each(features: Any) -> tuple[torch.Tensor, ...]:
        return tuple(features[at[index]] for index in first)

    output.pooler_output = each(output.pooler_output)
    if getattr(output, "deepstack_features", None) is not None:  # of Qwen3-VL: those of some layers
        output.deepstack_features = [each(features) for features in output.deepstack_features]
    return output


def _first_of_each(pixel_values: torch.Tensor, grids: torch.Tensor) -> list[int]:
    """For every picture the index of the first that is the same."""
    pieces = pixel_values.split(grids.prod(-1).tolist())
    marks = torch.stack([piece.float().sum() for piece in pieces]).tolist()
    keys = list(zip(marks, map(tuple, grids.tolist()), strict=True))
    first: dict[Any, int] = {}
    return [
        seen if torch.equal(pieces[seen := first.setdefault(key, index)], pieces[index]) else index
        for index, key in enumerate(keys)
    ]


def _remembered(original: Callable[..., Any], grid_thw: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """What follows from the sizes of a batch's pictures alone is made once for each combination of sizes."""
    given = kwargs.pop("kwargs", None) or {}
    if not _GIVEN.isdisjoint(given) or not all(isinstance(value, int) for value in (*args, *kwargs.values())):
        return original(grid_thw, *args, **kwargs, kwargs=given)
    sizes = tuple(map(tuple, grid_thw.tolist()))
    return _made(original, sizes, grid_thw.device, args, tuple(kwargs.items()))


@lru_cache(_GRIDS)
@torch.inference_mode(False)  # a backward pass may need it later
def _made(original: Callable[..., Any], sizes: Any, device: torch.device, args: Any, options: Any) -> Any:
    return original(torch.tensor(sizes, device=device), *args, **dict(options))


#: How a class's name ends, its method, and what goes before it.
_OF_CLASSES: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("PatchEmbed", "forward", _embed_patches),
    ("VisionAttention", "forward", _attend),
    ("VLModel", "get_rope_index", _positions),
    ("VLModel", "get_image_features", _features),
)
#: Functions that the library's model files import.
_OF_MODULES: dict[str, Callable[..., Any]] = {
    "get_vision_position_ids": _remembered,
    "get_vision_window_index": _remembered,
}
