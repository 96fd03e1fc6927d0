"""R's score of every option: what the texts are, and that they are what R is asked."""

from __future__ import annotations

import numpy as np
import pytest
from tests.support.rows import row_of

from medgr2_api.training_spec import AnswerFormat
from medgr2_jobs.models.vlm import PromptResponse
from medgr2_jobs.reward.option_scores import option_rationales, option_rows, option_scores
from medgr2_jobs.reward.scorer import score
from medgr2_jobs.store.rows.prepared import Item

OPTIONS = ("cyst", "mass", "plaque")


def item(image: str, question: str = "Which finding is shown?", options: tuple[str, ...] = OPTIONS) -> Item:
    return row_of(Item, image_sha256=image, question=question, options=options, answer_index=1)


def test_the_option_that_the_rationale_names_is_exchanged():
    assert option_rationales("The marks look like a mass.", OPTIONS, 1) == [
        "The marks look like a cyst.", "The marks look like a mass.", "The marks look like a plaque.",
    ]  # fmt: skip


@pytest.mark.parametrize("rationale", ["", "A dense shadow.", "The marks look like a cyst."])
def test_a_rationale_that_does_not_name_the_answer_gives_no_option_away(rationale):
    texts = option_rationales(rationale, OPTIONS, 1)
    assert texts == [f"The image fits the option {option}." for option in OPTIONS]


def test_texts_are_whole_answers():
    rows = option_rows(item("sha"), "It is a mass.", AnswerFormat.LETTER)
    assert [row.response for row in rows] == [
        "<think>It is a cyst.</think><answer>A</answer>",
        "<think>It is a mass.</think><answer>B</answer>",
        "<think>It is a plaque.</think><answer>C</answer>",
    ]
    assert len({(row.image_sha256, row.prompt) for row in rows}) == 1


def test_scores_belong_to_their_options(bench):
    model = bench.model()
    questions = [
        item(bench.images[0]),
        item(bench.images[1], options=("nodule", "mass")),
        item(bench.images[0], "And?"),
    ]
    rationales = ["Marks look like mass.", "A mass.", ""]
    found = option_scores(model, bench.encoder, questions, rationales, AnswerFormat.OPTION_TEXT)
    assert [len(scores) for scores in found] == [3, 2, 3]
    for question, rationale, scores in zip(questions, rationales, found, strict=True):
        rows: list[PromptResponse] = option_rows(question, rationale, AnswerFormat.OPTION_TEXT)
        alone = [score(model, bench.encoder, [row])[0] for row in rows]
        np.testing.assert_allclose(scores, alone, atol=1e-4)
    assert option_scores(model, bench.encoder, [], [], AnswerFormat.OPTION_TEXT) == []
