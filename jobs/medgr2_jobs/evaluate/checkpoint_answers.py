"""How a checkpoint answers questions: what it writes, and which offered option it then finds likeliest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from medgr2_api.training_spec import AnswerFormat

from ..engine.sampler import Sampler
from ..models.vlm import Encoder, PromptResponse
from .scoring import answer_context, greedy, option_logprobs


@dataclass(frozen=True)
class CheckpointAnswers:
    """The answers to N questions."""

    texts: list[str]
    """(N) what it writes, greedily."""
    logprobs: list[list[float]]
    """(N) log-probability of each option, given its own rationale."""


def answer(
    sampler: Sampler,
    encoder: Encoder,
    rows: Sequence[PromptResponse],
    options: Sequence[Sequence[str]],
    answer_format: AnswerFormat,
    within: Callable[[str, float], None] = lambda phase, share: None,
    batches: Sequence[int] = (),
) -> CheckpointAnswers:
    """Asks a checkpoint.

    Args:
        sampler: the checkpoint.
        encoder: of its processor.
        rows: N questions as they are put to it.
        options: (N) what each offers.
        answer_format: how options are answered.
        within: called after each batch with the phase and how many of the questions are done, 0 to N; may raise to
            stop.
        batches: as in `Sampler.answers`.

    Raises:
        NotFinite: a log-probability is no number.
    """
    texts = greedy(sampler, encoder, rows, answer_format, lambda done: within("answering", done / 2), batches=batches)
    contexts = [answer_context(text) for text in texts]
    logprobs = option_logprobs(
        sampler, encoder, rows, contexts, options, answer_format,
        lambda done: within("scoring", (len(rows) + done) / 2), batches=batches,
    )  # fmt: skip
    return CheckpointAnswers(texts, logprobs)
