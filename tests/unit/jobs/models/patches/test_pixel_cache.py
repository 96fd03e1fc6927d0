"""What is kept of pictures is what the image processor makes of them, and each is made once."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessor

from medgr2_jobs.models.patches import pixel_cache

CPU = torch.device("cpu")


class Processor:
    """What a processor is to the patch."""

    def __init__(self) -> None:
        self.image_processor = Counting(patch_size=14, merge_size=2, min_pixels=28 * 28, max_pixels=28 * 28 * 8)


class Counting(Qwen2VLImageProcessor):
    """Counts the pictures that it really does."""

    done = 0

    def _preprocess(self, images: Any, **options: Any) -> Any:
        Counting.done += len(images)
        return super()._preprocess(images, **options)


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(Counting, "preprocess", Counting.preprocess, raising=False)
    monkeypatch.setattr(Counting, "done", 0)
    return pixel_cache.apply(Processor(), CPU).image_processor


def picture(seed: int, width: int = 56, height: int = 28, mode: str = "RGB") -> Image.Image:
    noise = numpy.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=numpy.uint8)
    return Image.fromarray(noise).convert(mode)


def same(found: Any, expected: Any) -> None:
    assert sorted(found) == sorted(expected)
    for key in expected:
        assert found[key].dtype == expected[key].dtype
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=0)


@pytest.mark.parametrize(
    "images",
    [
        picture(0),
        [picture(0), picture(1, 84, 56), picture(0), picture(2, 56, 28, "L")],
        [[picture(0)], [picture(1, 84, 56), picture(0)], []],
        [picture(0, mode="P"), picture(1)],
        [numpy.array(picture(0)), numpy.array(picture(1))],
    ],
    ids=["one", "several, one twice", "of several prompts", "with a palette", "arrays"],
)
def test_the_same_numbers(processor: Any, images: Any) -> None:
    expected = Processor().image_processor(images=images, return_tensors="pt")  # this one was not asked to keep any
    for _ in range(2):
        same(processor(images=images, return_tensors="pt"), expected)


def test_the_same_picture_is_done_once_even_when_decoded_anew(processor: Any) -> None:
    for _ in range(2):
        processor(images=[[picture(0)], [picture(0)], [picture(1)]], return_tensors="pt")
    assert Counting.done == 2


def test_a_picture_of_other_sides_mode_or_settings_is_another(processor: Any) -> None:
    flat = Image.new("RGB", (56, 28))
    first = processor(images=flat, return_tensors="pt")
    turned = processor(images=Image.new("RGB", (28, 56)), return_tensors="pt")
    assert first["image_grid_thw"].tolist() == [[1, 2, 4]]
    assert turned["image_grid_thw"].tolist() == [[1, 4, 2]]
    raw = processor(images=flat, return_tensors="pt", do_normalize=False)
    assert not torch.equal(raw["pixel_values"], first["pixel_values"])
    processor.size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28}
    assert processor(images=picture(0), return_tensors="pt")["image_grid_thw"].tolist() == [[1, 2, 2]]


def test_changing_what_was_given_changes_nothing_that_is_kept(processor: Any) -> None:
    first = processor(images=picture(0), return_tensors="pt")["pixel_values"]
    kept = first.clone()
    first.zero_()
    torch.testing.assert_close(processor(images=picture(0), return_tensors="pt")["pixel_values"], kept)


def test_the_same_kinds_where_no_tensors_are_asked_for(processor: Any) -> None:
    expected = Processor().image_processor(images=picture(0))
    found = processor(images=picture(0))
    assert {key: type(value) for key, value in found.items()} == {key: type(value) for key, value in expected.items()}


def test_those_unused_for_longest_go_when_there_is_no_room() -> None:
    size = torch.zeros(10).nbytes
    cache: pixel_cache.PixelCache[pixel_cache.Pixels] = pixel_cache.PixelCache(room=2 * size)
    for key in "ab":
        cache.put(key, (torch.zeros(10), torch.zeros(3)), size)
    assert cache.get("a")
    cache.put("c", (torch.zeros(10), torch.zeros(3)), size)
    assert [key for key in "abc" if cache.get(key)] == ["a", "c"]
    large = (torch.zeros(100), torch.zeros(3))
    assert cache.put("d", large, 10 * size) is large
    assert [key for key in "abcd" if cache.get(key)] == ["d"]
