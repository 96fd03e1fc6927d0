"""Option log-probabilities against a forward pass per option; the batching of the greedy answers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from medgr2_api.training_spec import AnswerFormat
from medgr2_jobs.engine import in_process
from medgr2_jobs.engine.in_process import InProcessSampler
from medgr2_jobs.evaluate import scoring
from medgr2_jobs.models import vlm
from medgr2_jobs.models.generation import GREEDY, Decoding
from medgr2_jobs.models.vlm import PromptResponse
from medgr2_jobs.store.images import ImageStore

Loaded = tuple[Any, Any]
OFFERED = ["cyst", "solid mass", "nodule", "a plaque of some size"]
CONTEXTS = ["<think>it is red</think><answer>", "<answer>", "<think>it</think><answer>", "<answer>"]


def rows(colours: dict[str, str]) -> list[PromptResponse]:
    return [
        PromptResponse(colours["red"], "Which finding ? cyst, nodule"),
        PromptResponse(colours["small"], "Which ?"),
        PromptResponse(None, "cyst, nodule"),
        PromptResponse(colours["blue"], "Which finding is shown here ?"),
    ]


@torch.no_grad()
def one_by_one(
    model: Any, encoder: vlm.Encoder, row: PromptResponse, context: str, text: str, start: int | None = None
) -> tuple[float, list[int]]:
    """Sum of log p of `context + text` from response token `start` (default: after the context), a single forward."""
    whole = encoder.response_ids(context + text)[:-1]
    if start is None:
        start = len(encoder.response_ids(context)) - 1
    ids = torch.tensor([encoder.prompt_ids(row) + whole])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids),
              "mm_token_type_ids": (ids == encoder.image_token_id).long()}  # fmt: skip
    if row.image_sha256:
        patches, grid = encoder.pixels(row.image_sha256)
        inputs |= {"pixel_values": patches, "image_grid_thw": grid[None]}
    logprobs = torch.log_softmax(model(**inputs).logits[0].double(), -1)
    first = ids.shape[1] - len(whole) + start
    return sum(logprobs[at - 1, ids[0, at]].item() for at in range(first, ids.shape[1])), whole[start:]


@pytest.mark.parametrize("budget", [1, 150, 100_000])
def test_option_texts_equal_a_forward_pass_of_each_option(
    tiny_model: Loaded, store: ImageStore, colours: dict[str, str], budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_process, "SCORING_TOKENS", budget)
    model, encoder = tiny_model[0], vlm.Encoder(tiny_model[1], store)
    asked = rows(colours)
    offered = [OFFERED, OFFERED[:2], OFFERED[::-1], OFFERED]
    found = scoring.option_logprobs(
        InProcessSampler(model=model), encoder, asked, CONTEXTS, offered, AnswerFormat.OPTION_TEXT
    )
    for row, context, choices, values in zip(asked, CONTEXTS, offered, found, strict=True):
        expected = [one_by_one(model, encoder, row, context, f"{option}</answer>")[0] for option in choices]
        assert values == pytest.approx(expected, abs=1e-4)
        assert len(set(expected)) == len(expected)


def test_letters_equal_a_forward_pass_of_each_letter(
    tiny_model: Loaded, store: ImageStore, colours: dict[str, str]
) -> None:
    model, encoder = tiny_model[0], vlm.Encoder(tiny_model[1], store)
    asked = rows(colours)
    found = scoring.option_logprobs(
        InProcessSampler(model=model), encoder, asked, CONTEXTS, [OFFERED] * 4, AnswerFormat.LETTER
    )
    for row, context, values in zip(asked, CONTEXTS, found, strict=True):
        expected = [one_by_one(model, encoder, row, context, letter)[0] for letter in "ABCD"]
        assert values == pytest.approx(expected, abs=1e-4)


def test_a_letter_that_the_tokenizer_melts_into_the_tag_is_scored_as_that_token(
    melting_model: Loaded, store: ImageStore, colours: dict[str, str]
) -> None:
    model, encoder = melting_model[0], vlm.Encoder(melting_model[1], store)
    row, context = rows(colours)[0], CONTEXTS[0]
    assert encoder.response_ids(context + "A")[-2] != encoder.response_ids("A")[0], "the case this test is about"
    start = len(encoder.response_ids(context)) - 2
    expected = [one_by_one(model, encoder, row, context, letter, start) for letter in "ABCD"]
    assert all(len(tokens) == 1 for _, tokens in expected)
    found = scoring.option_logprobs(
        InProcessSampler(model=model), encoder, [row], [context], [OFFERED], AnswerFormat.LETTER
    )
    assert found[0] == pytest.approx([value for value, _ in expected], abs=1e-4)


@pytest.mark.parametrize(
    ("text", "context"),
    [
        ("<think>red</think><answer>cyst</answer>", "<think>red</think><answer>"),
        ("<think>red</think>", "<think>red</think><answer>"),
        ("<think>never ends", "<answer>"),
        ("<answer>cyst</answer>", "<answer>"),
        ("", "<answer>"),
        ("a</think>b</think>c", "a</think><answer>"),
    ],
)
def test_the_context_is_the_rationale_or_nothing(text: str, context: str) -> None:
    assert scoring.answer_context(text) == context


def test_greedy_answers_do_not_depend_on_the_batch(
    tiny_model: Loaded, store: ImageStore, colours: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, encoder = tiny_model[0], vlm.Encoder(tiny_model[1], store)
    asked = rows(colours)
    monkeypatch.setitem(scoring.MAX_NEW_TOKENS, AnswerFormat.OPTION_TEXT, 8)
    expected = [vlm.generate(model, encoder, [row], max_new_tokens=8)[0] for row in asked]
    assert scoring.greedy(InProcessSampler(model=model), encoder, asked, AnswerFormat.OPTION_TEXT) == expected
    monkeypatch.setattr(in_process, "SAMPLING_TOKENS", 1)
    done: list[int] = []
    assert (
        scoring.greedy(InProcessSampler(model=model), encoder, asked, AnswerFormat.OPTION_TEXT, done.append) == expected
    )
    assert done == [1, 2, 3, 4]


def test_a_batch_is_drawn_as_if_nothing_stood_beside_it(
    tiny_model: Loaded, store: ImageStore, colours: dict[str, str]
) -> None:
    """By its own seed: so parts and shards may be cut between any two batches."""
    encoder, sampler = vlm.Encoder(tiny_model[1], store), InProcessSampler(model=tiny_model[0])
    asked = [row for row in rows(colours) for _ in range(4)]

    def drawn(turns: list[PromptResponse], seed: int, batches: list[int]) -> list[str]:
        return sampler.answers(
            encoder, turns, max_new_tokens=12, decoding=Decoding(1.0, 1.0), seed=seed, batches=batches
        )

    together = drawn(asked, 5, [8, 4, 4])
    assert together == [*drawn(asked[:8], 5, []), *drawn(asked[8:12], 6, []), *drawn(asked[12:], 7, [])]
    assert together != drawn(asked, 6, [8, 4, 4])
    with pytest.raises(AssertionError, match="sizes"):
        drawn(asked, 5, [8, 4])


def test_what_the_model_holds_at_a_time_is_bounded_in_tokens_however_large_a_batch_is(
    tiny_model: Loaded, store: ImageStore, colours: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, sampler = vlm.Encoder(tiny_model[1], store), InProcessSampler(model=tiny_model[0])
    asked = [rows(colours)[0]] * 7
    each = len(encoder.prompt_ids(asked[0])) + 5
    monkeypatch.setattr(in_process, "SAMPLING_TOKENS", 3 * each)
    held: list[int] = []
    generate = vlm.generate

    def spy(model: Any, encoder: Any, turns: list[PromptResponse], **more: Any) -> list[str]:
        held.append(len(turns) * each)
        assert more["batch_size"] == len(turns)
        return generate(model, encoder, turns, **more)

    monkeypatch.setattr(in_process.vlm, "generate", spy)
    for decoding in (GREEDY, Decoding(1.0, 1.0)):
        assert len(sampler.answers(encoder, asked, max_new_tokens=5, decoding=decoding)) == 7
    assert held == [3 * each, 3 * each, each] * 2


def test_pieces_cover_everything_within_the_budget() -> None:
    lengths = [5, 1, 1, 9, 30, 2, 2]
    pieces = list(in_process._pieces(lengths, 10, 3))
    assert [index for piece in pieces for index in piece] == list(range(7))
    assert all(len(piece) == 1 or max(lengths[i] for i in piece) * len(piece) <= 10 for piece in pieces)
    assert list(in_process._pieces([], 10)) == []
    assert [len(piece) for piece in in_process._pieces([1] * 7, 100, 3)] == [3, 3, 1]


def test_text_only_answers_do_not_depend_on_images_shown_before(
    tiny_model: Loaded, store: ImageStore, colours: dict[str, str]
) -> None:
    """The model remembers how far images shifted the positions of its last batch."""
    encoder = vlm.Encoder(tiny_model[1], store)
    model = copy.deepcopy(tiny_model[0])
    text_only = [PromptResponse(None, "cyst, nodule"), PromptResponse(None, "What ? cyst")]
    model.model.rope_deltas = None
    expected = vlm.generate(model, encoder, text_only, max_new_tokens=12)
    scores = scoring.option_logprobs(
        InProcessSampler(model=model), encoder, text_only, CONTEXTS[:2], [OFFERED] * 2, AnswerFormat.OPTION_TEXT
    )
    pictures = [PromptResponse(colours[name], "Which finding ?") for name in ("red", "green", "blue")]
    vlm.generate(model, encoder, pictures, max_new_tokens=4)
    assert vlm.generate(model, encoder, text_only, max_new_tokens=12) == expected
    again = scoring.option_logprobs(
        InProcessSampler(model=model), encoder, text_only, CONTEXTS[:2], [OFFERED] * 2, AnswerFormat.OPTION_TEXT
    )
    assert again == scores
