"""What the policy's samples say, and which rationale goes with an answer."""

from __future__ import annotations

import pytest
from tests.support.curate_fixtures import triplet

from medgr2_api.training_spec import AnswerFormat
from medgr2_jobs.relabel.votes import Votes, rationale_for, spoken, votes

OPTIONS = ("CT", "MRI", "OCT", "Fundus")
TEXT = AnswerFormat.OPTION_TEXT


def said(rationale: str, answer: str) -> str:
    return f"<think>{rationale}</think><answer>{answer}</answer>"


def test_shares_are_of_what_can_be_read() -> None:
    samples = [
        said("It is MRI.", "MRI"),
        said("An MRI.", "MRI"),
        said("It is MRI.", "MRI"),
        said("It is CT.", "CT"),
        "no",
    ]
    found = votes(samples, OPTIONS, TEXT)
    assert found.shares == (0.25, 0.75, 0, 0)
    assert found.rationales == ("It is CT.", "It is MRI.", "", "")
    assert found.pick == 1
    assert not found.silent


def test_a_rationale_for_another_option_is_none() -> None:
    found = votes([said("It is CT.", "MRI"), said("It is CT.", "MRI"), said("Dark fluid.", "MRI")], OPTIONS, TEXT)
    assert found.shares == (0, 1, 0, 0)
    assert found.rationales == ("", "Dark fluid.", "", "")


def test_silence() -> None:
    found = votes(["what?", ""], OPTIONS, TEXT)
    assert found.silent
    row = triplet("t", "image", rationale="It is CT.")
    assert spoken(row, found) == (0, "It is CT.")
    assert rationale_for(row, found, 1, kept=False) == "It is MRI."


@pytest.mark.parametrize(
    ("kept", "answer", "expected"),
    [
        (True, 0, "It looks like it."),  # the generator's own: R found it good
        (False, 0, "It is CT."),  # rejected: its text may be why
        (True, 1, "An MRI."),
        (True, 2, "An OCT."),  # the commonest one's, with the option exchanged
    ],
)
def test_the_rationale_speaks_for_the_settled_answer(kept: bool, answer: int, expected: str) -> None:
    heard = Votes((0.25, 0.75, 0, 0), ("It is CT.", "An MRI.", "", ""))
    assert rationale_for(triplet("t", "image"), heard, answer, kept=kept) == expected


def test_where_nothing_can_be_exchanged_a_sentence_says_no_more_than_the_answer() -> None:
    heard = Votes((0, 1, 0, 0), ("", "Dark fluid.", "", ""))
    assert rationale_for(triplet("t", "image"), heard, 3, kept=True) == "The image fits the option Fundus."
