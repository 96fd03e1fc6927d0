"""Who answers for a checkpoint of the policy: transformers in this process, or a vLLM. Both are asked alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from ..models.checkpoint import Checkpoint
from ..models.generation import GREEDY, Decoding
from ..models.vlm import Encoder, PromptResponse

Between = Callable[[int], None]
"""Called with how many are done; may raise to stop."""


@dataclass(frozen=True)
class OptionQuestion:
    """A question whose options are to be scored, as token ids."""

    turn: PromptResponse
    """Image and prompt; no response."""
    answer: tuple[int, ...]
    """Behind the prompt: the beginning of the answer that all options share."""
    options: tuple[tuple[int, ...], ...]
    """Tokens of each option from where the options depart; all of them count."""


class Sampler(Protocol):
    """A checkpoint that is asked. Everything is loaded, or started, when it is first asked."""

    def answers(
        self,
        encoder: Encoder,
        turns: Sequence[PromptResponse],
        *,
        max_new_tokens: int,
        decoding: Decoding = GREEDY,
        seed: int = 0,
        between: Between = lambda done: None,
    ) -> list[str]:
        """Whole answers, in the order of the turns.

        Args:
            encoder: of the checkpoint's processor; says which pictures are shown.
            turns: what is asked. A turn's `response`, when given, is the beginning of the answer and is continued (it
                is not repeated in the result).
            max_new_tokens: longest answer.
            decoding: how tokens are drawn.
            seed: of all that is drawn in this call.
            between: called now and then with the turns done.

        Raises:
            NotFinite: the model's logits are no numbers.
        """
        ...

    def option_logprobs(
        self, encoder: Encoder, questions: Sequence[OptionQuestion], between: Between = lambda done: None
    ) -> list[list[float]]:
        """For each question the log-probability (nats) of each option's tokens behind prompt and shared answer.

        Raises:
            NotFinite: one of them is no number.
        """
        ...


class SamplerEngine(Protocol):
    """Makes samplers of checkpoints; a context, at whose end nothing runs any more."""

    def sampler(self, checkpoint: Checkpoint) -> Sampler:
        """That of a checkpoint. Only the newest one may be asked."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
