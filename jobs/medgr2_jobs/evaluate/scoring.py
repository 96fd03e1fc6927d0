"""Two ways to read a model's answer: what it writes (greedy), and which offered option it finds likeliest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from medgr2_api.training_spec import AnswerFormat

from ..engine.sampler import OptionQuestion, Sampler
from ..models.vlm import Encoder, PromptResponse
from ..prompts import answers

#: Longest answer in tokens. Small models that answer with text were taught short rationales; an instruction-tuned one
#: may think at length.
MAX_NEW_TOKENS = {AnswerFormat.OPTION_TEXT: 32, AnswerFormat.LETTER: 512}


def greedy(
    sampler: Sampler,
    encoder: Encoder,
    rows: Sequence[PromptResponse],
    answer_format: AnswerFormat,
    between: Callable[[int], None] = lambda done: None,
    *,
    batches: Sequence[int] = (),
) -> list[str]:
    """What the model writes, greedily, in the order of `rows`; `between` is called now and then with the rows done.
    `batches` as in `Sampler.answers`.

    The text is read by `answers.extract`; it also holds the rationale that `option_logprobs` needs.
    """
    return sampler.answers(
        encoder, rows, max_new_tokens=MAX_NEW_TOKENS[answer_format], batches=batches, between=between
    )


def answer_context(text: str) -> str:
    """What the model's turn holds before the option: its own rationale up to `</think>`, then `<answer>`.

    A text without `</think>` (it did not end within the limit, or the model does not know the format) gives the bare
    `<answer>`: the option is then scored without a rationale.
    """
    rationale, closed, _ = text.partition("</think>")
    return f"{rationale}{closed}<answer>" if closed else "<answer>"


def option_logprobs(
    sampler: Sampler,
    encoder: Encoder,
    rows: Sequence[PromptResponse],
    contexts: Sequence[str],
    options: Sequence[Sequence[str]],
    answer_format: AnswerFormat,
    between: Callable[[int], None] = lambda done: None,
    *,
    batches: Sequence[int] = (),
) -> list[list[float]]:
    """Log-probability of each offered option as the answer, given image, prompt and the model's own rationale.

    The score of option o is the sum of log p over the tokens of `o</answer>` after the context (`answer_context`); of a
    letter, log p of the letter alone. It always names an option, also where the greedy text cannot be parsed.

    Args:
        sampler: the checkpoint.
        encoder: of its processor.
        rows: the questions (N).
        contexts: for each the beginning of the answer (N).
        options: for each its options (N lists).
        answer_format: whether an option is answered by its letter or its text.
        between: called now and then with the questions done.
        batches: as in `Sampler.answers`.

    Returns:
        N lists of nats, in the order of the options.

    Raises:
        NotFinite: one of them is no number.
    """
    questions = [
        question(encoder, row, context, offered, answer_format)
        for row, context, offered in zip(rows, contexts, options, strict=True)
    ]
    return sampler.option_logprobs(encoder, questions, between, batches=batches)


def question(
    encoder: Encoder, row: PromptResponse, context: str, offered: Sequence[str], answer_format: AnswerFormat
) -> OptionQuestion:
    """A question with its options as token ids.

    A tokenizer may melt the end of the context into the option (Qwen: `>A` is one token). So each whole text is
    tokenised, as it was in training, and what counts begins at the first token in which any option's text departs from
    the context's.
    """
    closing = "" if answer_format is AnswerFormat.LETTER else "</answer>"
    texts = [context + answers.answer_text(index, offered, answer_format) + closing for index in range(len(offered))]
    ids = [encoder.response_ids(text)[:-1] for text in texts]  # less the end of the turn
    before = encoder.response_ids(context)[:-1]
    start = min(_common(before, option) for option in ids)
    return OptionQuestion(row, tuple(before[:start]), tuple(tuple(option[start:]) for option in ids))


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common beginning."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
