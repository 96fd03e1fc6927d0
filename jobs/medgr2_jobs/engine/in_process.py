"""The policy in this process, by transformers: what a small model is asked with, and what servers are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from types import TracebackType
from typing import Any, Self

import torch

from ..models import vlm
from ..models.checkpoint import Checkpoint
from ..models.generation import GREEDY, Decoding
from ..models.vlm import Encoder, PromptResponse
from .sampler import Between, OptionQuestion, batches_of

#: Tokens that are sampled on, or scored, at a time, padding included: all sampling in a process goes through here.
#: Keys and values of a 7B model (57 kB a token) then take 4 GB.
SAMPLING_TOKENS = 65_536
SCORING_TOKENS = 16_384
_MAX_BATCH = 256
_SEEDS = 2**31


class InProcessEngine:
    """Loads a checkpoint when it is first asked."""

    def sampler(self, checkpoint: Checkpoint) -> InProcessSampler:
        return InProcessSampler(checkpoint)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing runs."""


class InProcessSampler:
    """A model, or a checkpoint that becomes one."""

    def __init__(self, checkpoint: Checkpoint | None = None, model: Any = None) -> None:
        self._checkpoint = checkpoint
        self._model = model

    @property
    def model(self) -> Any:
        """The model; loaded now if it was not."""
        if self._model is None:
            assert self._checkpoint is not None
            self._model = self._checkpoint.load()
        return self._model

    def answers(
        self,
        encoder: Encoder,
        turns: Sequence[PromptResponse],
        *,
        max_new_tokens: int,
        decoding: Decoding = GREEDY,
        seed: int = 0,
        batches: Sequence[int] = (),
        between: Between = lambda done: None,
    ) -> list[str]:
        """As the protocol says. What the model holds at a time is bounded by `SAMPLING_TOKENS`, however large a batch
        is."""
        texts: list[str] = []
        model = self.model  # before the seed: loading may draw, too
        for number, batch in enumerate(batches_of(turns, batches)):
            if decoding.temperature:
                torch.manual_seed((seed + number) % _SEEDS)
            lengths = [len(encoder.prompt_ids(turn)) + max_new_tokens for turn in batch]
            for piece in _pieces(lengths, SAMPLING_TOKENS, _MAX_BATCH):
                texts += vlm.generate(
                    model,
                    encoder,
                    batch[piece.start : piece.stop],
                    max_new_tokens=max_new_tokens,
                    decoding=decoding,
                    batch_size=len(piece),
                )
                between(len(texts))
        return texts

    def option_logprobs(
        self,
        encoder: Encoder,
        questions: Sequence[OptionQuestion],
        between: Between = lambda done: None,
        *,
        batches: Sequence[int] = (),
    ) -> list[list[float]]:
        """As the protocol says."""
        found: list[list[float]] = []
        score = self._packed if encoder.counts_grid else self._each_option

        def of_all(done: int) -> None:
            between(len(found) + done)

        for batch in batches_of(questions, batches):
            found += score(encoder, batch, of_all)
        return found

    @torch.no_grad()
    def _packed(self, encoder: Encoder, questions: Sequence[OptionQuestion], between: Between) -> list[list[float]]:
        """One forward pass per question: the options stand one after another behind what they share, each at the
        positions that follow it and blind to the others (tests compare with a pass of its own for each option)."""
        first_score = [0, *accumulate(len(question.options) for question in questions)]
        packed = [
            _Packed(question.turn.image_sha256, [*encoder.prompt_ids(question.turn), *question.answer],
                    question.options, first)
            for question, first in zip(questions, first_score, strict=False)
        ]  # fmt: skip
        packed.sort(key=lambda question: question.length)  # like lengths together: little padding
        scores = torch.zeros(first_score[-1], dtype=torch.float64)
        done = 0
        for piece in _pieces([question.length for question in packed], SCORING_TOKENS):
            batch = [packed[index] for index in piece]
            inputs, targets = _pack(self.model, encoder, batch)
            hidden = self.model.model(**inputs, use_cache=False).last_hidden_state
            logits = self.model.lm_head(hidden[targets[:, 0], targets[:, 1]]).float()
            chosen = torch.log_softmax(logits, -1).cpu().gather(1, targets[:, 2:3]).squeeze(1)
            vlm.check_finite(chosen.numpy(), "log-probabilities of the options")
            scores.index_add_(0, targets[:, 3], chosen.double())
            done += len(batch)
            between(done)
        values = scores.tolist()
        return [values[start:end] for start, end in pairwise(first_score)]

    @torch.no_grad()
    def _each_option(
        self, encoder: Encoder, questions: Sequence[OptionQuestion], between: Between
    ) -> list[list[float]]:
        """The plain way, for families whose positions we cannot lay out: a row for each option."""
        rows = [
            (at, number, [*encoder.prompt_ids(question.turn), *question.answer], option)
            for at, question in enumerate(questions)
            for number, option in enumerate(question.options)
        ]
        values = [[0.0] * len(question.options) for question in questions]
        done = 0
        for piece in _pieces([len(prompt) + len(option) for _, _, prompt, option in rows], SCORING_TOKENS):
            some = rows[piece.start : piece.stop]
            images = [questions[at].turn.image_sha256 for at, *_ in some]
            batch = encoder.assemble(images, [prompt for _, _, prompt, _ in some], [option for *_, option in some])
            logprobs, _, _ = vlm.response_logprobs(self.model, batch.to(self.model.device))
            sums = logprobs.double().sum(1).cpu()
            vlm.check_finite(sums.numpy(), "log-probabilities of the options")
            for (at, number, *_), value in zip(some, sums.tolist(), strict=True):
                values[at][number] = value
            if some[-1][0] + 1 > done:
                done = some[-1][0] + 1
                between(done)
        return values


@dataclass(frozen=True)
class _Packed:
    """What one forward pass holds: the tokens that all options share, then each option's own."""

    image_sha256: str | None
    shared: list[int]
    """Prompt and the beginning of the answer."""
    options: Sequence[Sequence[int]]
    """Tokens of each option from where the options depart; all of them count."""
    first_score: int
    """Index of the first option's score."""

    @property
    def length(self) -> int:
        """Tokens of the forward pass: an option's last token is only predicted, never read."""
        return len(self.shared) + sum(len(option) - 1 for option in self.options)


def _pack(model: Any, encoder: Encoder, batch: Sequence[_Packed]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
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
