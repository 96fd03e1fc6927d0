"""Settled questions in the grades of D_grade."""

from __future__ import annotations

from collections import Counter

import pytest
from tests.support.rows import row_of

from medgr2_api.reward_model import Grades
from medgr2_api.training_spec import AnswerFormat
from medgr2_jobs.curate.settled import SettledQuestion
from medgr2_jobs.reward.lessons import against_reward, graded
from medgr2_jobs.store.rows import Split
from medgr2_jobs.store.rows.candidates import AnswerPosterior, Triplet
from medgr2_jobs.store.rows.prepared import Grade, GradedRow

OPTIONS = ("cyst", "mass", "plaque", "nodule")


def settled(number: int, answer_index: int, rationale: str = "") -> SettledQuestion:
    """A question whose generator claims the first option."""
    triplet = Triplet(
        f"t{number}", 1, f"image-{number}", "CT", "finding", f"Which finding is shown in {number}?", OPTIONS, 0,
        "The generator's words.", "the generator's answer",
    )  # fmt: skip
    return SettledQuestion(triplet, answer_index, rationale, 0.9, agreed=False)


def rows_of(questions: list[SettledQuestion], **changes: int) -> list[GradedRow]:
    options = {"mismatches": 2, "seed": 3, **changes}
    return graded(questions, grades=Grades(), answer_format=AnswerFormat.OPTION_TEXT, lexicon=None, **options)


def test_the_settled_answer_is_the_right_one():
    questions = [settled(number, 1 + number % 3, f"It looks like a {OPTIONS[1 + number % 3]}.") for number in range(6)]
    rows = rows_of(questions)
    assert {row.split for row in rows} == {Split.TRAIN}
    assert {row.item_id for row in rows} == {row.triplet.triplet_id for row in questions}
    for question in questions:
        own = [row for row in rows if row.item_id == question.triplet.triplet_id]
        [right] = [row for row in own if row.grade is Grade.ORIGINAL]
        answer = OPTIONS[question.answer_index]
        assert right.response == f"<think>It looks like a {answer}.</think><answer>{answer}</answer>"
        assert (right.target, right.image_sha256) == (10, question.triplet.image_sha256)
        counts = Counter(row.grade for row in own)
        assert counts[Grade.IMAGE_MISMATCH] == 2
        assert counts[Grade.IRRELEVANT] >= 2
        wrong = [row for row in own if row.perturbation == "wrongAnswer"]
        assert all(f"<answer>{answer}</answer>" not in row.response for row in wrong)
        assert all("generator" not in row.response for row in own), "what it claimed is no text to learn from"


def test_the_seed_decides_and_nothing_else():
    questions = [settled(number, 1) for number in range(4)]
    assert rows_of(questions) == rows_of(questions)
    assert rows_of(questions) != rows_of(questions, seed=4)
    assert rows_of([]) == []


@pytest.mark.parametrize(
    ("answer_index", "scores", "against"),
    [(1, (3.0, 9.0), 0), (0, (3.0, 9.0), 1), (0, (9.0, 9.0), 0), (None, (3.0, 9.0), 0)],
)
def test_answers_that_are_not_rs_own(answer_index, scores, against):
    assert against_reward([row_of(AnswerPosterior, answer_index=answer_index, reward_scores=scores)]) == against
