"""What R says of every option of a question: one text per option, the option exchanged and nothing else.

The texts differ in the option alone, so the wording gives no answer away: the best score is R's own answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from medgr2_api.training_spec import AnswerFormat

from ..data import graded_dataset, paraphrase
from ..models.vlm import Encoder, PromptResponse
from ..prompts import answers
from ..store.rows import AnsweredQuestion
from .model import RewardModel
from .scorer import Progress, score


def option_scores(
    model: RewardModel,
    encoder: Encoder,
    questions: Sequence[AnsweredQuestion],
    rationales: Sequence[str],
    answer_format: AnswerFormat,
    *,
    on_progress: Progress | None = None,
) -> list[tuple[float, ...]]:
    """R's score of each option.

    Args:
        model: R.
        encoder: of the model's processor.
        questions: N questions; the answer of each is what its rationale speaks for.
        rationales: (N) why that answer; the other options' texts are made of it.
        answer_format: how responses are written.
        on_progress: as in `score`.

    Returns:
        N tuples, a score in [-6, 10] for every option of the question.

    Raises:
        NotFinite: a score is no number.
    """
    texts = [option_rows(row, text, answer_format) for row, text in zip(questions, rationales, strict=True)]
    scores = score(model, encoder, [row for rows in texts for row in rows], on_progress=on_progress).tolist()
    ends = [0]
    for rows in texts:
        ends.append(ends[-1] + len(rows))
    return [tuple(scores[start:end]) for start, end in pairwise(ends)]


def option_rows(question: AnsweredQuestion, rationale: str, answer_format: AnswerFormat) -> list[PromptResponse]:
    """The texts, one per option, as R reads them."""
    prompt = answers.prompt_of(question, answer_format)
    return [
        PromptResponse(prompt.image_sha256, prompt.text, answers.response(text, at, question.options, answer_format))
        for at, text in enumerate(option_rationales(rationale, question.options, question.answer_index))
    ]


def option_rationales(rationale: str, options: Sequence[str], answer_index: int) -> list[str]:
    """A rationale per option: the given one, with the option that it names exchanged; where it names none, the neutral
    sentence for every option."""
    exchanged = [paraphrase.swap(rationale, options[answer_index], option) for option in options]
    texts = [text for text in exchanged if text is not None]
    return texts if len(texts) == len(options) else [graded_dataset.neutral(option) for option in options]
