"""Prompts that stand in a batch several times, as GRPO's do: tokenised and padded once each, then repeated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakSet

import numpy
import torch
from transformers import BatchFeature

from . import registry
from .pixel_cache import counts_grid

_OF_ROWS = {"input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw"}
_PATCHES = "pixel_values"


def apply(processor: Any, device: torch.device) -> Any:
    """Has a processor do each different prompt of a batch once.

    TRL hands every prompt over twice in a step, each time once for every completion.

    Args:
        processor: changed if its family counts the grid, else left as it is.
        device: where the model is.

    Returns:
        The processor.
    """
    if counts_grid(processor) and registry.REPEATED_PROMPTS.applies(device):
        _sharing.add(processor)
        registry.replace(type(processor), "__call__", _process)
    return processor


_sharing: WeakSet[Any] = WeakSet()


def _process(
    original: Callable[..., BatchFeature], processor: Any, images: Any = None, text: Any = None, **options: Any
) -> BatchFeature:
    """What is not one picture object with one text each goes the processor's own way."""
    if processor in _sharing and (keys := _keys(images, text)):
        first: dict[Any, int] = {}
        number = [first.setdefault(key, len(first)) for key in keys]
        if len(first) < len(keys):
            at = [number.index(each) for each in range(len(first))]
            features = original(
                processor, images=[images[row] for row in at], text=[text[row] for row in at], **options
            )
            if features.keys() <= {*_OF_ROWS, _PATCHES}:
                return _repeated(features, number)
    return original(processor, images=images, text=text, **options)


def _keys(images: Any, text: Any) -> list[Any]:
    """A key of every row, equal only for equal rows; none where rows cannot be told apart so simply."""
    if not isinstance(images, list) or not isinstance(text, list) or len(images) != len(text):
        return []
    if not all(isinstance(row, list) and len(row) == 1 for row in images):
        return []
    return [(id(row[0]), words) for row, words in zip(images, text, strict=True)]


def _repeated(features: BatchFeature, rows: Sequence[int]) -> BatchFeature:
    """The batch with a row for each entry of `rows`; lists, arrays and tensors stay what they are."""
    counts = numpy.asarray(features["image_grid_thw"]).prod(-1)
    ends = counts.cumsum()
    patches = numpy.concatenate([numpy.arange(ends[row] - counts[row], ends[row]) for row in rows])

    def pick(name: str, values: Any) -> Any:
        if isinstance(values, list):
            return [values[row] for row in rows]
        return values[patches if name == _PATCHES else numpy.array(rows)]

    return BatchFeature({name: pick(name, values) for name, values in features.items()})
