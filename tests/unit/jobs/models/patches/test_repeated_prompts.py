"""A batch whose prompts repeat is what the processor alone makes of it, and each prompt is done once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from medgr2_jobs.models.patches import pixel_cache, repeated_prompts
from medgr2_jobs.models.tiny import tokenizer

CPU = torch.device("cpu")
PICTURES = [
    Image.fromarray(numpy.random.default_rng(seed).integers(0, 255, (56, 56, 3), dtype=numpy.uint8)) for seed in (0, 1)
]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts each call of the tokenizer got."""
    counts: list[int] = []
    kind = type(tokenizer.tokenizer())
    original = kind.__call__

    def counting(self: Any, text: Any, **options: Any) -> Any:
        counts.append(len(text))
        return original(self, text, **options)

    monkeypatch.setattr(kind, "__call__", counting)
    processor = type(tokenizer.processor())
    monkeypatch.setattr(processor, "__call__", processor.__call__)  # and so the patch's change goes with the test
    return counts


def conversations(*rows: tuple[int, str]) -> list[list[dict[str, Any]]]:
    return [
        [{"role": "user", "content": [{"type": "image", "image": PICTURES[at]}, {"type": "text", "text": words}]}]
        for at, words in rows
    ]


#: Two prompts of one picture, the second one's words about another, each several times, not only side by side.
REPEATED = ((0, "What is it?"), (0, "What is it?"), (0, "Which part shows it?"), (1, "What is it?"), (0, "What is it?"))


def both_ways(processor: Any, rows: tuple[tuple[int, str], ...]) -> list[Any]:
    """What TRL's GRPO asks for: lists for sampling, padded tensors for the loss."""
    asked = conversations(*rows)
    lists = processor.apply_chat_template(
        conversation=asked, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    texts = processor.apply_chat_template(conversation=asked, add_generation_prompt=True)
    images = [[turns[0]["content"][0]["image"]] for turns in asked]
    return [lists, processor(images=images, text=texts, padding=True, return_tensors="pt")]


def same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, list):
        assert found == expected
    else:
        assert found.dtype == expected.dtype
        torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected), rtol=0, atol=0)


@pytest.mark.parametrize(
    "keep",
    [lambda processor: pixel_cache.apply(processor, CPU), lambda processor: processor],
    ids=["kept pictures", "plain"],
)
def test_the_same_batch(seen: list[int], keep: Callable[[Any], Any]) -> None:
    expected = both_ways(keep(tokenizer.processor()), REPEATED)
    assert seen == [5, 5]
    found = both_ways(repeated_prompts.apply(keep(tokenizer.processor()), CPU), REPEATED)
    assert seen[2:] == [3, 3]
    for one, other in zip(found, expected, strict=True):
        assert list(one) == list(other)
        for name, value in other.items():
            same(one[name], value)


def test_another_processor_is_left_alone(seen: list[int]) -> None:
    shared, other = repeated_prompts.apply(tokenizer.processor(), CPU), tokenizer.processor()
    both_ways(other, REPEATED)
    both_ways(shared, REPEATED)
    assert seen == [5, 5, 3, 3]


def test_rows_of_no_picture_or_of_several_go_the_librarys_way(seen: list[int]) -> None:
    plain, shared = tokenizer.processor(), repeated_prompts.apply(tokenizer.processor(), CPU)
    image = plain.image_token
    for images, texts in (
        (None, ["one", "one"]),
        ([[PICTURES[0], PICTURES[1]]] * 2, [image * 2] * 2),
        (PICTURES[0], image),
    ):
        expected, found = (each(images=images, text=texts, return_tensors="pt") for each in (plain, shared))
        assert list(found) == list(expected)
        for name, value in expected.items():
            same(found[name], value)
    assert seen == [2, 2, 2, 2, 1, 1]
