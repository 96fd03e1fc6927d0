"""Two ways to read a model's answer: what it writes (greedy), and which offered option it finds likeliest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from medgr2_api.training_spec import AnswerFormat

from ..models import vlm
from ..models.vlm import Encoder, PromptResponse
from ..prompts import answers

#: Longest answer in tokens. Small models that answer with text were taught short rationales; an instruction-tuned one
#: may think at length.
MAX_NEW_TOKENS = {AnswerFormat.OPTION_TEXT: 32, AnswerFormat.LETTER: 512}
#: Tokens of one batch, padding included. Keys and values of a 7B model (57 kB a token) then take 4 GB.
SAMPLING_TOKENS = 65_536
SCORING_TOKENS = 16_384
_MAX_BATCH = 256


def greedy(
    model: Any,
    encoder: Encoder,
    rows: Sequence[PromptResponse],
    answer_format: AnswerFormat,
    between: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """What the model writes, greedily, in the order of `rows`; `between` is called after each batch with the rows done.

    The text is read by `answers.extract`; it also holds the rationale that `option_logprobs` needs.
    """
    limit = MAX_NEW_TOKENS[answer_format]
    texts: list[str] = []
    for piece in _pieces([len(encoder.prompt_ids(row)) + limit for row in rows], SAMPLING_TOKENS, _MAX_BATCH):
        batch = [rows[index] for index in piece]
        texts += vlm.generate(model, encoder, batch, max_new_tokens=limit, batch_size=len(batch))
        between(len(texts))
    return texts


def answer_context(text: str) -> str:
    """What the model's turn holds before the option: its own rationale up to `</think>`, then `<answer>`.

    A text without `</think>` (it did not end within the limit, or the model does not know the format) gives the bare
    `<answer>`: the option is then scored without a rationale.
    """
    rationale, closed, _ = text.partition("</think>")
    return f"{rationale}{closed}<answer>" if closed else "<answer>"


@dataclass(frozen=True)
class _Question:
    """What one forward pass holds: the tokens that all options share, then each option's own."""

    image_sha256: str | None
    shared: list[int]
    """Prompt and the beginning of the answer."""
    options: list[list[int]]
    """Tokens of each option from where the options depart; all of them count."""
    first_score: int
    """Index of the first option's score."""

    @property
    def length(self) -> int:
        """Tokens of the forward pass: an option's last token is only predicted, never read."""
        return len(self.shared) + sum(len(option) - 1 for option in self.options)


@torch.no_grad()
def option_logprobs(
    model: Any,
    encoder: Encoder,
    rows: Sequence[PromptResponse],
    contexts: Sequence[str],
    options: Sequence[Sequence[str]],
    answer_format: AnswerFormat,
    between: Callable[[int], None] = lambda done: None,
) -> list[list[float]]:
    """Log-probability of each offered option as the answer, given image, prompt and the model's own rationale.

    The score of option o is the sum of log p over the tokens of `o</answer>` after the context (`answer_context`); of a
    letter, log p of the letter alone. It always names an option, also where the greedy text cannot be parsed.

    A tokenizer may melt the end of the context into the option (Qwen: `>A` is one token). So each whole text is
    tokenised, as it was in training, and what counts begins at the first token in which any option's text departs from
    the context's.

    One forward pass per question: the options stand one after another behind the context, each at the positions that
    follow it and blind to the others (tests compare with a pass of its own for each option).

    Args:
        rows: the questions (N).
        contexts: for each the beginning of the answer (N).
        options: for each its options (N lists).
        answer_format: whether an option is answered by its letter or its text.
        between: called after each batch with the questions done.

    Returns:
        N lists of nats, in the order of the options.

    Raises:
        NotFinite: one of them is no number.
    """
    first_score = [0]
    questions: list[_Question] = []
    for row, context, offered in zip(rows, contexts, options, strict=True):
        questions.append(_question(encoder, row, context, offered, answer_format, first_score[-1]))
        first_score.append(first_score[-1] + len(offered))
    questions.sort(key=lambda question: question.length)  # like lengths together: little padding
    scores = torch.zeros(first_score[-1], dtype=torch.float64)
    done = 0
    for piece in _pieces([question.length for question in questions], SCORING_TOKENS):
        batch = [questions[index] for index in piece]
        inputs, targets = _pack(model, encoder, batch)
        hidden = model.model(**inputs, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[targets[:, 0], targets[:, 1]]).float()
        chosen = torch.log_softmax(logits, -1).cpu().gather(1, targets[:, 2:3]).squeeze(1)
        vlm.check_finite(chosen.numpy(), "log-probabilities of the options")
        scores.index_add_(0, targets[:, 3], chosen.double())
        done += len(batch)
        between(done)
    values = scores.tolist()
    return [values[start:end] for start, end in pairwise(first_score)]


def _question(
    encoder: Encoder,
    row: PromptResponse,
    context: str,
    offered: Sequence[str],
    answer_format: AnswerFormat,
    first_score: int,
) -> _Question:
    closing = "" if answer_format is AnswerFormat.LETTER else "</answer>"
    texts = [context + answers.answer_text(index, offered, answer_format) + closing for index in range(len(offered))]
    ids = [encoder.response_ids(text)[:-1] for text in texts]  # less the end of the turn
    before = encoder.response_ids(context)[:-1]
    start = min(_common(before, option) for option in ids)
    shared = encoder.prompt_ids(row) + before[:start]
    return _Question(row.image_sha256, shared, [option[start:] for option in ids], first_score)


def _pack(model: Any, encoder: Encoder, batch: Sequence[_Question]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Inputs of one forward pass over B questions (padded to T tokens), and what to read from it.

    Returns:
        inputs: with a boolean attention mask (B, 1, T, T) and position ids (3, B, T).
        targets: int64 (K, 4): row and position of a hidden state, the token it predicts, the score that counts it.
    """
    length = max(question.length for question in batch)
    ids = torch.full((len(batch), length), encoder.tokenizer.pad_token_id)
    part = torch.full((len(batch), length), -1)  # 0: shared, 1…: an option, -1: padding
    back = torch.zeros((len(batch), length), dtype=torch.long)  # how far an option stands behind its true position
    targets: list[tuple[int, int, int, int]] = []
    for at, question in enumerate(batch):
        common = end = len(question.shared)
        ids[at, :end] = torch.tensor(question.shared)
        part[at, :end] = 0
        for number, option in enumerate(question.options):
            start, end = end, end + len(option) - 1
            ids[at, start:end] = torch.tensor(option[:-1], dtype=torch.long)
            part[at, start:end] = number + 1
            back[at, start:end] = start - common
            places = [common - 1, *range(start, end)]
            score = question.first_score + number
            targets += [(at, place, token, score) for place, token in zip(places, option, strict=True)]
    inputs = {"input_ids": ids, "mm_token_type_ids": (ids == encoder.image_token_id).long()}
    pictures = [encoder.pixels(question.image_sha256) for question in batch if question.image_sha256 is not None]
    if pictures:
        inputs["pixel_values"] = torch.cat([patches for patches, _ in pictures])
        inputs["image_grid_thw"] = torch.stack([grid for _, grid in pictures])
        places_of = {key: inputs[key] for key in ("input_ids", "mm_token_type_ids", "image_grid_thw")}
        positions = model.model.get_rope_index(**places_of, attention_mask=(part >= 0).long())[0]
    else:
        positions = torch.arange(length).expand(3, len(batch), length)
    inputs["position_ids"] = positions - back
    seen = (part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None])
    inputs["attention_mask"] = (seen & torch.ones(length, length, dtype=torch.bool).tril())[:, None]
    return {name: value.to(model.device) for name, value in inputs.items()}, torch.tensor(targets)


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common beginning."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))


def _pieces(lengths: Sequence[int], budget: int, limit: int | None = None) -> Iterator[range]:
    """Consecutive ranges whose padded size (longest times count) stays within `budget`; at least one element each."""
    start, longest = 0, 0
    for index, length in enumerate(lengths):
        longest = max(longest, length)
        count = index - start + 1
        if count > 1 and (longest * count > budget or (limit is not None and count > limit)):
            yield range(start, index)
            start, longest = index, length
    if lengths:
        yield range(start, len(lengths))
