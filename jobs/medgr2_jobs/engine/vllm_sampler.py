"""A checkpoint behind a vLLM, asked so that it answers as transformers would in this process.

The server is sent token ids, so prompts are the same whatever template it has; the one image token stands for the
picture, which the server's processor replaces as ours does. Its answers say which ids the model was given, and the
first ones are compared: a server with another processor, or another model, shows other pictures than those that were
trained on. What must not be sampled, where answers end, temperature and top-p are those of `models.generation`.
"""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from transformers import GenerationConfig

from ..errors import ConfigError, NotFinite, TemporaryError
from ..models import generation
from ..models.checkpoint import Checkpoint
from ..models.generation import GREEDY, WEIGHTS, Decoding
from ..models.vlm import Encoder, PromptResponse
from .sampler import Between, OptionQuestion, batches_of
from .token_client import JSON, TokenClient

#: Answers of a sampler whose prompt is compared with ours.
_COMPARED = 32
#: Pictures whose bytes are kept: a picture's questions follow one another.
_KEPT_PICTURES = 64
#: The strongest that a server takes: no logit lies so far above the others.
_NEVER = -100.0
#: What a server writes for a log-probability that is no number, or minus infinity.
_NOT_FINITE = -9999.0
_SEEDS = 2**31


@dataclass(frozen=True)
class Sample:
    """One answer as the server gave it."""

    token_ids: tuple[int, ...]
    """With the token that ended it."""
    logprobs: tuple[float, ...]
    """Of each token (nats), by the model's own logits: neither temperature nor forbidden tokens change them."""


@dataclass(frozen=True)
class Served:
    """A checkpoint on a running server."""

    client: TokenClient
    model: str
    """Its name there."""


class VLLMSampler:
    """Asks a checkpoint on a server, which is started, and given its adapters, when it is first asked."""

    def __init__(self, checkpoint: Checkpoint, serve: Callable[[Callable[[], None]], Served]) -> None:
        """
        Args:
            checkpoint: what answers.
            serve: has it served; is given what to call while that takes its time.
        """
        self._checkpoint = checkpoint
        self._serve = serve
        self._served: Served | None = None
        self._compared = 0

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
        """As the protocol says. Equal turns of a batch that follow one another are one request."""
        grouped = [
            [(turn, len(list(same))) for turn, same in itertools.groupby(batch)] for batch in batches_of(turns, batches)
        ]
        groups = [group for batch in grouped for group in batch]
        share = len(turns) / max(1, len(groups))
        found = self.samples(
            encoder, groups, max_new_tokens, decoding, seed, lambda done: between(int(done * share)),
            batches=[len(batch) for batch in grouped],
        )  # fmt: skip
        texts: list[str] = []
        for (turn, _), samples in zip(groups, found, strict=True):
            ids = [list(sample.token_ids) for sample in samples]
            said = encoder.tokenizer.batch_decode(ids, skip_special_tokens=True)
            texts += said if turn.response else [encoder.answered(text) for text in said]
        return texts

    def samples(
        self,
        encoder: Encoder,
        groups: Sequence[tuple[PromptResponse, int]],
        max_new_tokens: int,
        decoding: Decoding,
        seed: int,
        between: Between = lambda done: None,
        *,
        batches: Sequence[int] = (),
    ) -> list[list[Sample]]:
        """Of each turn so many answers, with the log-probabilities of their tokens.

        A request's seed follows from its batch's and from its place there.

        Raises:
            NotFinite: one of them is no number.
            ConfigError: the server was given another prompt than ours.
        """
        ends, never = self._tokens(encoder)
        common = {
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "max_tokens": max_new_tokens,
            "stop_token_ids": ends,
            "logit_bias": {str(token): _NEVER for token in never},
            "logprobs": 0,
            "detokenize": False,
        }
        prompts = [_prompt(encoder, turn) for turn, _ in groups]
        seeds = [
            _seed((seed + number) % _SEEDS, index)
            for number, batch in enumerate(batches_of(groups, batches))
            for index in range(len(batch))
        ]

        def parameters(index: int) -> JSON:
            return {**common, "n": groups[index][1], "seed": seeds[index]}

        found = self._ask(encoder, [turn for turn, _ in groups], prompts, parameters, between)
        return [[_sample(choice) for choice in answer["choices"]] for answer in found]

    def option_logprobs(
        self,
        encoder: Encoder,
        questions: Sequence[OptionQuestion],
        between: Between = lambda done: None,
        *,
        batches: Sequence[int] = (),  # noqa: ARG002 - each request is one of its own
    ) -> list[list[float]]:
        """As the protocol says: a request for each option, whose tokens are the end of the prompt."""
        each = [(question, option) for question in questions for option in question.options]
        prompts = [[*_prompt(encoder, question.turn), *question.answer, *option] for question, option in each]
        parameters = {"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": 0, "detokenize": False}
        share = len(questions) / max(1, len(each))
        found = self._ask(
            encoder, [question.turn for question, _ in each], prompts, lambda _: parameters,
            lambda done: between(int(done * share)),
        )  # fmt: skip
        scores = iter(
            [_sum(answer["prompt_logprobs"], option) for answer, (_, option) in zip(found, each, strict=True)]
        )
        return [[next(scores) for _ in question.options] for question in questions]

    def _ask(
        self,
        encoder: Encoder,
        turns: Sequence[PromptResponse],
        prompts: Sequence[Sequence[int]],
        parameters: Callable[[int], JSON],
        between: Between,
    ) -> list[JSON]:
        if self._served is None:
            self._served = self._serve(lambda: between(0))
        served, first = self._served, max(0, _COMPARED - self._compared)
        picture = lru_cache(_KEPT_PICTURES)(lambda sha256: _data_url(encoder, sha256))

        def body(index: int) -> JSON:
            sha256 = turns[index].image_sha256
            shown = {} if sha256 is None else {"content_parts": [{"type": "image_url", "url": picture(sha256)}]}
            return {
                "model": served.model,
                "token_ids": list(prompts[index]),
                **shown,
                "sampling_params": parameters(index),
                "return_token_ids": index < first,
            }

        found = served.client.generate(len(turns), body, between)
        for index, answer in enumerate(found[:first]):
            self._compare(encoder, turns[index], prompts[index], answer)
        self._compared += len(found)
        return found

    def _compare(self, encoder: Encoder, turn: PromptResponse, sent: Sequence[int], answer: JSON) -> None:
        """Whether the model was given what ours would have been.

        Raises:
            ConfigError: it was not.
        """
        behind = len(sent) - len(_prompt(encoder, PromptResponse(turn.image_sha256, turn.prompt)))
        expected = [*encoder.prompt_ids(turn), *sent[len(sent) - behind :]]
        given = answer.get("prompt_token_ids")
        if given == expected:
            return
        assert self._served is not None
        at = next((n for n, pair in enumerate(zip(given or (), expected, strict=False)) if pair[0] != pair[1]), 0)
        raise ConfigError(
            f"the vLLM at {self._served.client.address.root} gives the model another prompt than training does: "
            f"{len(given or ())} tokens, not {len(expected)}, the first difference at token {at}. It must serve "
            f"{self._checkpoint.base} with the processor that lies there"
        )

    def _tokens(self, encoder: Encoder) -> tuple[list[int], list[int]]:
        """Where answers end, and what must never be sampled."""
        configuration = generation.configuration(encoder.tokenizer, self._shipped)
        ends = configuration.eos_token_id
        return [ends] if isinstance(ends, int) else list(ends), generation.never_sampled(encoder.processor, ends)

    @cached_property
    def _shipped(self) -> GenerationConfig | None:
        """The model's own generation configuration."""
        folder = self._checkpoint.base
        if not (folder / "generation_config.json").is_file():
            return None
        return GenerationConfig.from_pretrained(folder, local_files_only=True)


def _seed(seed: int, index: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:8], "big") % _SEEDS


def _prompt(encoder: Encoder, turn: PromptResponse) -> list[int]:
    """Token ids of prompt and beginning of the answer; a single image token stands for the picture."""
    text = encoder.chat(turn.prompt, with_image=turn.image_sha256 is not None)
    ids: list[int] = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    return [*ids, *(encoder.response_ids(turn.response)[:-1] if turn.response else [])]


def _data_url(encoder: Encoder, sha256: str) -> str:
    """A picture as the encoder shows it; the store's own bytes where that is the one in the store."""
    if type(encoder).image is Encoder.image:
        png = encoder.images.read(sha256)
    else:
        buffer = io.BytesIO()
        encoder.image(sha256).save(buffer, "PNG", compress_level=1)
        png = buffer.getvalue()
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _sample(choice: Any) -> Sample:
    logprobs = tuple(float(token["logprob"]) for token in choice["logprobs"]["content"])
    _check_finite(logprobs)
    return Sample(tuple(choice["token_ids"]), logprobs)


def _sum(positions: Sequence[Any], option: Sequence[int]) -> float:
    """Log-probability of the last tokens of a prompt."""
    if len(positions) < len(option):
        raise TemporaryError("the vLLM says nothing about the tokens of an option")
    values = [
        position[str(token)]["logprob"] for position, token in zip(positions[-len(option) :], option, strict=True)
    ]
    _check_finite(values)
    return float(sum(values))


def _check_finite(values: Sequence[float]) -> None:
    if any(value <= _NOT_FINITE for value in values):
        raise NotFinite(f"the log-probabilities that the vLLM gives are infinite or no numbers: {WEIGHTS}")
