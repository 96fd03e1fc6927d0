"""How pictures stand in a prompt and in a model's inputs: what differs from family to family.

The Qwen2-VL families count a picture's tokens from its grid of patches. All others are asked through their processor:
what it writes in the place of a picture, and which tensors it makes of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch.nn import functional

from .patches.pixel_cache import PixelCache, Pixels, counts_grid

#: The picture behind a name.
Load = Callable[[str], Any]
#: A text's token ids.
Tokenise = Callable[[str], Sequence[int]]

#: What a processor returns of the text, not of the picture.
_OF_TEXT = ("input_ids", "attention_mask", "text_replacement_offsets")
#: The names under which families take the marks of image tokens.
_KINDS = ("token_type_ids", "mm_token_type_ids")


class Pictures(ABC):
    """The pictures of an encoder, by name; what was made of them is kept."""

    token_id: int
    """The token that stands for each feature of a picture."""
    kinds: str | None
    """The model's input that marks those tokens; None: it needs none."""

    @abstractmethod
    def count(self, name: str) -> int:
        """How many features, and so tokens, a picture has."""

    @abstractmethod
    def prompt_ids(self, text: str, name: str) -> list[int]:
        """Token ids of a prompt in which the chat template has left a place for one picture."""

    @abstractmethod
    def inputs(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """The model's inputs that show pictures, in the order of the rows that have one."""


def of_processor(processor: Any, load: Load, tokenise: Tokenise) -> Pictures:
    """In the way of the processor's family; `tokenise` remembers the texts that it was given."""
    return GridPictures(processor, load, tokenise) if counts_grid(processor) else ProcessedPictures(processor, load)


class GridPictures(Pictures):
    """The Qwen2-VL families'."""

    kinds = "mm_token_type_ids"

    def __init__(self, processor: Any, load: Load, tokenise: Tokenise) -> None:
        self._processor, self._load, self._tokenise = processor, load, tokenise
        self.token_id = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
        self._merge: int = processor.image_processor.merge_size**2
        self._cache: PixelCache[Pixels] = PixelCache()

    def pixels(self, name: str) -> Pixels:
        """Patches float32 (N, D) and grid int64 (3,)."""
        if kept := self._cache.get(name):
            return kept
        features = self._processor.image_processor(images=[self._load(name)], return_tensors="pt")
        patches = features["pixel_values"]
        return self._cache.put(name, (patches, features["image_grid_thw"][0]), patches.nbytes)

    def count(self, name: str) -> int:
        """See `Pictures`."""
        return int(self.pixels(name)[1].prod()) // self._merge

    def prompt_ids(self, text: str, name: str) -> list[int]:
        """See `Pictures`."""
        ids = self._tokenise(text)
        at = ids.index(self.token_id)
        return [*ids[:at], *[self.token_id] * self.count(name), *ids[at + 1 :]]

    def inputs(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """`pixel_values` (N, D) of all patches, `image_grid_thw` int64 (pictures, 3)."""
        shown = [self.pixels(name) for name in names]
        return {
            "pixel_values": torch.cat([patches for patches, _ in shown]),
            "image_grid_thw": torch.stack([grid for _, grid in shown]),
        }


@dataclass(frozen=True)
class _Processed:
    """What a processor makes of a picture."""

    text: str
    """What stands in its place in a prompt."""
    inputs: dict[str, torch.Tensor]
    """For the model; the first dimension counts pictures, or tiles of them."""
    count: int
    """Of its features."""


class ProcessedPictures(Pictures):
    """Those of a family of which nothing is known but its processor."""

    def __init__(self, processor: Any, load: Load) -> None:
        self._processor, self._load = processor, load
        self._cache: PixelCache[_Processed] = PixelCache()
        self.token_id = processor.image_token_ids[0]  # that of a feature; others mark what stands around them
        made = self._call(Image.new("RGB", (64, 64)))
        self.kinds = next((name for name in _KINDS if name in made), None)

    def _call(self, picture: Any) -> Any:
        return self._processor(
            images=[[picture]], text=[self._processor.image_token], return_text_replacement_offsets=True
        )

    def _made(self, name: str) -> _Processed:
        if kept := self._cache.get(name):
            return kept
        made = self._call(self._load(name))
        ((replaced,),) = made["text_replacement_offsets"]
        tensors = {
            key: torch.as_tensor(value) if not isinstance(value, list) else torch.stack([*map(torch.as_tensor, value)])
            for key, value in made.items()
            if key not in (*_OF_TEXT, *_KINDS)
        }
        count = list(made["input_ids"][0]).count(self.token_id)
        size = sum(tensor.nbytes for tensor in tensors.values())
        return self._cache.put(name, _Processed(replaced["replacement"], tensors, count), size)

    def count(self, name: str) -> int:
        """See `Pictures`."""
        return self._made(name).count

    def prompt_ids(self, text: str, name: str) -> list[int]:
        """See `Pictures`. The whole text is tokenised: what stands around a picture may melt with what it replaces."""
        whole = text.replace(self._processor.image_token, self._made(name).text, 1)
        ids: list[int] = self._processor.tokenizer(whole, add_special_tokens=False)["input_ids"]
        return ids

    def inputs(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """What the processor makes of each, one after another; shorter ones are padded with zeros, as it would."""
        shown = [self._made(name).inputs for name in names]
        return {key: _joined([one[key] for one in shown]) for key in shown[0]}


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors along their first dimension; in the others each is as large as the largest."""
    sizes = [max(size) for size in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]

    def padded(tensor: torch.Tensor) -> torch.Tensor:
        room = [pair for size, own in zip(sizes[::-1], tensor.shape[:0:-1], strict=True) for pair in (0, size - own)]
        return functional.pad(tensor, room) if any(room) else tensor

    return torch.cat([*map(padded, tensors)])
