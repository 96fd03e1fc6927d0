"""answers.extract: never random, never fuzzy (docs/decisions.md, 5)."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medgr2_api.training_spec import AnswerFormat
from medgr2_jobs.prompts import answers

OPTIONS = ["solid mass", "mass", "cyst", "No finding"]

plain = st.text(alphabet=st.characters(blacklist_characters="<>", blacklist_categories=["Cs"]), max_size=30)
word = st.text(alphabet="bcdfghklmnprstvw", min_size=3, max_size=8)
option_lists = st.lists(word, min_size=2, max_size=6, unique=True).filter(
    lambda options: not any(a != b and a in b for a in options for b in options)
)


def block(text: str) -> str:
    return f"<think>because</think><answer>{text}</answer>"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", 1),
        ("(b)", 1),
        (" c. ", 2),
        ("D:", 3),
        ("E", None),  # there is no fifth option
        ("cyst", 2),
        ("  CYST. ", 2),
        ("ｃｙｓｔ", 2),  # full width
        ("no  finding", 3),
        ("mass", 1),  # exact, though also contained in the first
        ("it is a cyst", 2),
        ("it is a solid mass", None),  # holds two options
        ("cyst or no finding", None),
        ("cysts", None),  # nearly is not enough
        ("", None),
        ("A B", None),
        ("1", None),
    ],
)
def test_reads_letter_then_exact_text_then_the_only_contained_option(answer: str, expected: int | None) -> None:
    assert answers.extract(block(answer), OPTIONS) == expected


@pytest.mark.parametrize(
    "text", ["", "B", "cyst", "The answer is B", "<answer>B", "B</answer>", "<answer></answer>", "<think>B</think>"]
)
def test_without_a_complete_block_nothing_is_read(text: str) -> None:
    assert answers.extract(text, OPTIONS) is None


def test_the_last_block_wins_even_when_it_cannot_be_read() -> None:
    assert answers.extract("<answer>A</answer> no, <answer>C</answer>", OPTIONS) == 2
    assert answers.extract("<answer>A</answer><answer>perhaps</answer>", OPTIONS) is None


def test_an_answer_tag_that_is_only_mentioned_does_not_swallow_the_real_one() -> None:
    assert answers.extract("<think>inside <answer> I write it</think><answer>cyst</answer>", OPTIONS) == 2


def test_an_option_of_punctuation_alone_is_not_matched_by_silence() -> None:
    assert answers.extract("<answer></answer>", ["?", "cyst"]) is None


def test_options_that_read_alike_cannot_be_told_apart() -> None:
    assert answers.extract(block("cyst"), ["cyst", "Cyst.", "mass"]) is None


@given(option_lists, st.data(), plain)
def test_every_written_answer_is_read_back(options: list[str], data: st.DataObject, rationale: str) -> None:
    index = data.draw(st.integers(0, len(options) - 1))
    for answer_format in AnswerFormat:
        written = answers.response(rationale, index, options, answer_format)
        assert answers.extract(written, options) == index
        assert answers.extract("<answer>A</answer>" + written, options) == index
        assert answers.extract(written.upper(), options) == index


@given(st.text(max_size=80), option_lists)
def test_the_same_text_always_gives_the_same_and_a_valid_result(text: str, options: list[str]) -> None:
    wrapped = block(text)
    found = answers.extract(wrapped, options)
    assert found == answers.extract(wrapped, options)
    assert found is None or 0 <= found < len(options)


@given(plain, option_lists)
def test_what_names_no_option_and_is_no_letter_is_none(text: str, options: list[str]) -> None:
    folded = answers.normalise(text)
    if any(option in folded for option in options) or re.fullmatch(r"\(?[A-Za-z]\)?[.:]?", text.strip()):
        return
    assert answers.extract(block(text), options) is None


@given(option_lists, st.data())
def test_the_order_of_options_only_moves_the_index(options: list[str], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(options))
    answer = data.draw(st.sampled_from(options))
    found = answers.extract(block(f"it shows {answer}"), shuffled)
    assert found is not None
    assert shuffled[found] == answer
