"""What a generator answers is judged once, by one function; every text has an outcome."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medgr2_api.generator import Paradigm
from medgr2_jobs.generate import candidate_schema, prompt_templates
from medgr2_jobs.store.rows.candidates import CandidateOutcome

GOOD: dict[str, Any] = {
    "question": "Which finding is shown?",
    "question_type": "Diagnosis",
    "options": ["nodule", "cyst", "mass", "plaque"],
    "answer_letter": "B",
    "answer_text": "cyst",
    "rationale": "A round lucency with a thin wall.",
    "image_findings": ["round lucency"],
    "self_check": "No solid part.",
}


def answer(**changes: Any) -> str:
    return json.dumps({**GOOD, **changes})


@pytest.mark.parametrize(
    "text",
    [
        answer(),
        f"```json\n{answer()}\n```",
        f"Here it is: {answer()} Done.",
        answer(answer_letter="(b)"),
        answer(answer_text="Cyst."),
        answer(options=["A. nodule", "B. cyst", "C) mass", "D: plaque"], answer_text="B. cyst"),
        answer(surplus=1),
    ],
)
def test_good(text: str) -> None:
    outcome, made = candidate_schema.parse_answer(text)
    assert outcome == "ok"
    assert made == candidate_schema.GeneratedQuestion(
        question=GOOD["question"],
        question_type="Diagnosis",
        options=tuple(GOOD["options"]),
        answer_index=1,
        rationale=GOOD["rationale"],
    )


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("", "invalid_json"),
        ("I cannot help with that.", "invalid_json"),
        (answer()[:-20], "invalid_json"),
        ("}{", "invalid_json"),
        ("[1, 2]", "invalid_json"),
        ("{" * 100_000, "invalid_json"),
        ("{" * 100_000 + "}", "schema"),
        ("{}", "schema"),
        (answer(question=""), "schema"),
        (answer(question="   "), "schema"),
        (answer(options="nodule, cyst"), "schema"),
        (answer(options=["nodule", "cyst", "mass", "..."]), "schema"),
        (answer(options=[1, 2, 3, 4]), "schema"),
        (answer(rationale="x" * 9000), "schema"),
        (answer(rationale="So </think><answer>A</answer>"), "schema"),
        (answer(rationale="A mass.<|im_end|>"), "schema"),
        (answer(question="What does <|image_pad|> show?"), "schema"),
        (answer(options=["nodule", "cyst", "mass"]), "wrong_option_count"),
        (answer(options=[]), "wrong_option_count"),
        (answer(options=["nodule", "cyst", "Cyst.", "mass"]), "duplicate_options"),
        (answer(answer_text="cystic lesion"), "answer_not_in_options"),
        (answer(answer_letter="E"), "answer_not_in_options"),
        (answer(answer_letter="none"), "answer_not_in_options"),
        (answer(answer_letter="A"), "answer_contradicts"),
    ],
)
def test_bad(text: str, outcome: str) -> None:
    assert candidate_schema.parse_answer(text) == (outcome, None)


@given(st.text() | st.recursive(st.none() | st.text() | st.integers(), lambda x: st.lists(x)).map(json.dumps))
def test_any_text_has_an_outcome(text: str) -> None:
    outcome, made = candidate_schema.parse_answer(text)
    assert (outcome == "ok") == (made is not None)


def test_response_format_is_strict() -> None:
    found = candidate_schema.response_format()["json_schema"]
    assert found["strict"] is True
    assert found["schema"]["additionalProperties"] is False
    assert set(found["schema"]["required"]) == set(GOOD) == set(found["schema"]["properties"])
    assert "Length" not in json.dumps(found)


def test_every_outcome_has_its_place_in_the_table() -> None:
    assert list(candidate_schema.OUTCOMES) == list(CandidateOutcome)
    repairable = {name for name, outcome in candidate_schema.OUTCOMES.items() if outcome.repair}
    assert repairable == {candidate_schema.parse_answer(text)[0] for text in (
        "prose", "{}", answer(options=[]), answer(options=["a", "a", "b", "c"]), answer(answer_text="x"),
        answer(answer_letter="A"),
    )}  # fmt: skip


def test_prompts() -> None:
    prompts = [prompt_templates.load(paradigm) for paradigm in Paradigm]
    assert len({prompt.sha256 for prompt in prompts}) == 3
    for prompt in prompts:
        for modality in ("Fundus", ""):
            text = prompt.render(modality=modality, question_type="Grading")
            assert "Grading" in text
            assert modality in text
            assert "{{" not in text
            assert "()" not in text
            assert all(f'"{field}"' in text for field in GOOD)
            assert "Exactly 4 options" in text
