"""Preprocessed pictures that are kept: each is shown to a model many times, and preprocessing it takes a while."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from hashlib import blake2b
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from transformers import BatchFeature

from . import registry

_KEPT_BYTES = 512 * 2**20

#: Patches float32 (N, D) of a picture and its grid int64 (3,): times, rows and columns of patches.
Pixels = tuple[torch.Tensor, torch.Tensor]
T = TypeVar("T")


class PixelCache(Generic[T]):
    """What was made of pictures, by key; those unused for longest go when there is no room."""

    def __init__(self, room: int = _KEPT_BYTES) -> None:
        self._kept: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._room = room

    def get(self, key: Hashable) -> T | None:
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def put(self, key: Hashable, made: T, size: int) -> T:
        """Keeps what was made for a key that has nothing, of `size` bytes, and gives it back."""
        self._kept[key] = (made, size)
        self._room -= size
        while self._room < 0 and len(self._kept) > 1:
            self._room += self._kept.popitem(last=False)[1][1]
        return made


def counts_grid(processor: Any) -> bool:
    """Whether the processor is of a family that counts a picture's tokens from its grid of patches."""
    return hasattr(processor.image_processor, "merge_size")


def apply(processor: Any, device: torch.device) -> Any:
    """Has a processor do each different picture once, for as long as its pixels are kept.

    TRL hands a GRPO prompt's picture over twice for every completion, and all of them again in every epoch.

    Args:
        processor: changed if its family counts the grid, else left as it is.
        device: where the model is.

    Returns:
        The processor.
    """
    if counts_grid(processor) and registry.PIXEL_CACHE.applies(device):
        _caches[processor.image_processor] = PixelCache()
        registry.replace(type(processor.image_processor), "preprocess", _preprocess)
    return processor


_caches: WeakKeyDictionary[Any, PixelCache[Pixels]] = WeakKeyDictionary()


def _preprocess(original: Callable[..., BatchFeature], processor: Any, images: Any, **options: Any) -> BatchFeature:
    """Pictures are told apart by what they show: trainers decode them anew each time."""
    pictures, cache = list(_flat(images)), _caches.get(processor)
    if cache is None or not pictures or not all(map(_plain, pictures)):
        return original(processor, images, **options)
    settings = repr((vars(processor), {**options, "return_tensors": None}))
    keys = [(settings, picture.mode, picture.size, blake2b(picture.tobytes()).digest()) for picture in pictures]
    cached = {key: pixels for key in keys if (pixels := cache.get(key))}
    missing = {key: picture for key, picture in zip(keys, pictures, strict=True) if key not in cached}
    if missing:
        computed = original(processor, list(missing.values()), **{**options, "return_tensors": "pt"})
        grids = computed["image_grid_thw"]
        for key, patches, grid in zip(
            missing, computed["pixel_values"].split(grids.prod(-1).tolist()), grids, strict=True
        ):
            own = patches.clone()  # a view would keep the whole batch in memory
            cached[key] = cache.put(key, (own, grid), own.nbytes)
    return BatchFeature(
        {
            "pixel_values": torch.cat([cached[key][0] for key in keys]),
            "image_grid_thw": torch.stack([cached[key][1] for key in keys]),
        },
        tensor_type=options.get("return_tensors"),
    )


def _flat(images: Any) -> Iterator[Any]:
    """Processors take one picture, a list of them, or a list of lists (of which some are empty)."""
    if isinstance(images, list | tuple):
        for part in images:
            yield from _flat(part)
    elif images is not None:
        yield images


def _plain(picture: Any) -> bool:
    """Whether its bytes are all that there is to it (a palette would not be among them)."""
    return isinstance(picture, Image.Image) and picture.mode in ("L", "RGB")
