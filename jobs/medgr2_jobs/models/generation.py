"""The one configuration by which our models write: in sampling, in measuring, and in what is published.

A model's own `generation_config.json` brings more than end tokens: a repetition penalty, top-k, forbidden words.
transformers fills them in wherever a call says nothing, so that a policy would be trained under one distribution and
measured under another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor

from ..errors import NotFinite


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn."""

    temperature: float = 0.0
    """0: greedy."""
    top_p: float = 1.0

    def options(self) -> dict[str, Any]:
        """For `generate`: all of them, or transformers has defaults of its own."""
        if not self.temperature:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}


GREEDY = Decoding()


def configuration(tokenizer: Any, shipped: GenerationConfig | None) -> GenerationConfig:
    """Ours, for a model and its tokenizer.

    An answer ends with each token that either of them knows as an end: where the model's configuration names another
    one than the tokenizer, answers would run on. Nothing else of the model's configuration is taken.

    Args:
        tokenizer: of the model.
        shipped: the model's own; None: it has none.
    """
    ends = shipped.eos_token_id if shipped is not None else None
    known = {ends} if isinstance(ends, int) else set(ends or ())
    every = sorted({*known, tokenizer.eos_token_id} - {None})
    return GenerationConfig(
        do_sample=False,
        eos_token_id=every[0] if len(every) == 1 else every,
        pad_token_id=tokenizer.pad_token_id,
    )


def never_sampled(processor: Any, ends: int | list[int]) -> list[int]:
    """Token ids that must never be sampled: every special token but those that end an answer.

    A sampled image token makes the next forward pass fail, for it has no image features (TRL#3847).
    """
    special = {index for index, token in processor.tokenizer.added_tokens_decoder.items() if token.special}
    every = special | {processor.tokenizer.convert_tokens_to_ids(processor.image_token)}
    return sorted(every - ({ends} if isinstance(ends, int) else set(ends)))


class OnlyNumbers(LogitsProcessor):
    """Stops where a model's logits are no numbers: the answer would be the first token of the vocabulary, for ever."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """
        Args:
            input_ids: (B, T) so far.
            scores: (B, vocabulary), -inf where a token must not come.

        Raises:
            NotFinite: one is no number.
        """
        if bool(scores.isnan().any()):
            raise NotFinite(f"the model's logits are no numbers after {input_ids.shape[1]} tokens: {WEIGHTS}")
        return scores


WEIGHTS = (
    "its weights are damaged, or too large for the precision it runs in; take another checkpoint or base model, or "
    "train it with a lower learning rate"
)
