"""Who answers for a checkpoint of the policy: transformers in this process, or a vLLM. Both are asked alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import TracebackType
from typing import Protocol, Self, TypeVar

from ..models.checkpoint import Checkpoint
from ..models.generation import GREEDY, Decoding
from ..models.vlm import Encoder, PromptResponse

Between = Callable[[int], None]
"""Called with how many are done; may raise to stop."""

T = TypeVar("T")


def batches_of(rows: Sequence[T], sizes: Sequence[int]) -> list[Sequence[T]]:
    """Consecutive rows, so many in each; without sizes all together."""
    ends = list(accumulate(sizes or [len(rows)]))
    assert ends[-1] == len(rows), "sizes of batches that are not the rows'"
    return [rows[start:end] for start, end in zip([0, *ends], ends, strict=False)]


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
        batches: Sequence[int] = (),
        between: Between = lambda done: None,
    ) -> list[str]:
        """Whole answers, in the order of the turns. A batch's do not depend on what is asked beside it.

        Args:
            encoder: of the checkpoint's processor; says which pictures are shown.
            turns: what is asked. A turn's `response`, when given, is the beginning of the answer and is continued (it
                is not repeated in the result).
            max_new_tokens: longest answer.
            decoding: how tokens are drawn.
            seed: of the first batch; the next one's is one more.
            batches: how many turns belong to each, one after another; empty: all are one.
            between: called now and then with the turns done.

        Raises:
            NotFinite: the model's logits are no numbers.
        """
        ...

    def option_logprobs(
        self,
        encoder: Encoder,
        questions: Sequence[OptionQuestion],
        between: Between = lambda done: None,
        *,
        batches: Sequence[int] = (),
    ) -> list[list[float]]:
        """For each question the log-probability (nats) of each option's tokens behind prompt and shared answer.

        Args:
            encoder: of the checkpoint's processor.
            questions: what is asked.
            between: called now and then with the questions done.
            batches: as in `answers`.

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
