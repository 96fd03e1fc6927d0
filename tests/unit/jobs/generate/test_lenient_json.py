"""What can be read in one way only is read; all else is no JSON, and no text takes long."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.chat_server import TRIPLET

from medgr2_jobs.generate import candidate_schema, lenient_json

GOOD = json.dumps(TRIPLET)
LETTERED = dict(zip("ABCD", TRIPLET["options"], strict=True))
RATIONALE = f'"{TRIPLET["rationale"]}"'
DRAFT = json.dumps({**TRIPLET, "answer_letter": "A", "answer_text": "nodule"})


def changed(**fields: Any) -> str:
    return json.dumps({**TRIPLET, **fields})


READ = {
    "thinking with braces": f"<think>The set {{A, B}} and {DRAFT}. No.</think>\n{GOOD}",
    "thinking that the template opened": f"It may be {{x}}, or {DRAFT}.\n</think>\n\n{GOOD}",
    "thinking in other tags": f"<thinking>{DRAFT}</thinking>{GOOD}",
    "prose with braces": f"With f(x) = {{1, 2}} and {{\"a\": 1}} I say: {GOOD} (so {{it}} is)",
    "a code fence": f"```json\n{GOOD}\n```\nHope this helps {{}}",
    "a trailing comma": GOOD[:-1] + ",}",
    "a trailing comma in a list": GOOD.replace('"plaque"]', '"plaque",]'),
    "options by letter": changed(options={"A": "nodule", "B": "cyst", "C": "mass", "D": "plaque"}),
    "options by letter, shuffled": changed(options={"D": "plaque", "B": "cyst", "A": "nodule", "C": "mass"}),
    "options with letters": changed(options=[{"letter": x, "text": t} for x, t in LETTERED.items()]),
    "options one by one": changed(options=[{x: t} for x, t in LETTERED.items()]),
    "comments": "{ // the item\n" + GOOD[1:-1] + " /* done */ }",
    "a comment of Python": "{ # the item\n" + GOOD[1:],
    "single quotes": "{" + GOOD[1:].replace("'", "").replace('"', "'"),
    "typographic quotes": '{"question": “Which finding is shown?”,' + GOOD.split(",", 1)[1],
    "an apostrophe in single quotes": GOOD.replace(RATIONALE, "'The patient's cyst, thin-walled.'"),
    "a line break in a text": GOOD.replace("A round", "A\nround"),
    "not a number, beside it": GOOD[:-1] + ', "confidence": NaN, "sure": True}',
    "twice the same": f"{GOOD}\n\nAgain:\n{GOOD}",
    "in a list": f"[{GOOD}]",
    "in another object": f'{{"note": 1}} {GOOD}',
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_what_can_be_read_is_not_asked_for_again(name: str) -> None:
    outcome, made = candidate_schema.parse_answer(READ[name])
    assert (outcome, made and (made.options, made.answer_index)) == ("ok", (tuple(TRIPLET["options"]), 1))


NOT_READ = {
    "two different answers": f"{DRAFT}\n{GOOD}",
    "thinking without an end": f"<think>{GOOD}",
    "an answer that was only thought of": f"{GOOD} <think>or else",
    "only in thinking": f"<think>{GOOD}</think> I cannot tell.",
    "cut off": GOOD[:-30],
    "cut off in a list": GOOD[: GOOD.index('"plaque"') + 3],
    "an unescaped quote": GOOD.replace("thin wall", 'a "thin" wall'),
    "a field twice": GOOD[:-1] + ', "answer_letter": "A"}',
    "a comma is missing": GOOD.replace('", "answer_text"', '" "answer_text"'),
    "an example in a broken object": f'{{"bad example": {DRAFT}, "good": {GOOD[:-30]}',
}


@pytest.mark.parametrize("name", NOT_READ)
def test_what_can_be_read_in_two_ways_is_not_read(name: str) -> None:
    assert candidate_schema.parse_answer(NOT_READ[name]) == ("invalid_json", None)


@pytest.mark.parametrize(
    "options",
    [
        {"A": "nodule", "B": "cyst", "D": "mass", "E": "plaque"},
        {"1": "nodule", "2": "cyst", "3": "mass", "4": "plaque"},
        [{"letter": "B", "text": "nodule"}, {"letter": "A", "text": "cyst"}],
        [{"text": "nodule", "correct": False}],
        [{"A": "nodule"}, "cyst", "mass", "plaque"],
        {"A": 1, "B": 2, "C": 3, "D": 4},
    ],
)
def test_options_of_an_order_that_nobody_knows_are_refused(options: Any) -> None:
    outcome, made = candidate_schema.parse_answer(changed(options=options))
    assert outcome != "ok"
    assert made is None


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"\frac{1}{2}", r"\frac{1}{2}"),
        (r"\\frac{1}{2}", r"\frac{1}{2}"),
        (r"\alpha \beta \times \text{mm} \nu \rho \theta", r"\alpha \beta \times \text{mm} \nu \rho \theta"),
        (r"\(x\) 5\,mm 50\% \unit", r"\(x\) 5\,mm 50\% \unit"),
        (r"one\ntwo\tthree \"four\" \/", 'one\ntwo\tthree "four" /'),
        (r"no\nNormal\nnodule\ttall\robust", "no\nNormal\nnodule\ttall\robust"),
        (r"\u00b5 \ud83d\ude00", "µ 😀"),
        (r"C:\\new", r"C:\new"),
    ],
)
def test_backslashes(written: str, read: str) -> None:
    assert lenient_json.objects('{"a": "' + written + '"}') == [{"a": read}]


_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\b\f"), max_size=20)
_VALUES = st.recursive(
    st.none() | st.booleans() | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.text("abcdef", max_size=5), _VALUES, max_size=4), st.booleans())
def test_what_is_json_is_read_as_json(value: dict[str, Any], ascii_only: bool) -> None:
    written = json.dumps(value, ensure_ascii=ascii_only)
    found = lenient_json.objects(f"So: {written} – that is it.")
    # backslash-t-e-x-t in JSON is a tab and "ext": the one place where LaTeX is thought likelier
    assert found == [value] or any(command in written for command in (r"\t", r"\n", r"\r"))


@pytest.mark.parametrize(
    "piece", ["{", '{"a":', "{'", "{/*", "{//", "{ ", '{"a":[', "{'a' ", "}", "<think>{", '{"\\', "[{", '{"a":"b"}']
)
def test_no_text_takes_more_than_linear_time(piece: str) -> None:
    began = time.process_time()
    lenient_json.objects(piece * (400_000 // len(piece)))
    assert time.process_time() - began < 60  # of what a square would take for hours


@given(st.text("{}[]\"'\\,:ab/*#\n <>think", max_size=60))
def test_any_text_can_be_looked_through(text: str) -> None:
    assert isinstance(lenient_json.objects(text), list)
