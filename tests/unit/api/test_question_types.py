"""A misspelt kind of question does not go into paid prompts; one of the user's own brings its words along."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.cycle_documents import spec_with

from medgr2_api.generator import KNOWN_QUESTION_TYPES
from medgr2_api.presets import resolve
from medgr2_api.stages import stage_parameters
from medgr2_api.stages.generate import GenerateParameters
from medgr2_api.unsupported import unsupported

OWN = {"Laterality": "which side of the body is affected"}


def found(types: list[str], own: dict[str, str] | None = None) -> dict[str, str]:
    spec = spec_with({"generator.questionTypes": types, "generator.customQuestionTypes": own or {}})
    return {problem.path.removeprefix("spec.generator."): problem.message for problem in unsupported(spec)}


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("Diagnossis", "Diagnosis"),
        ("diagnostic", "Diagnosis"),
        ("Anatomie", "Anatomy"),
        ("Grade", "Grading"),
        ("?", ""),
    ],
)
def test_a_type_that_no_prompt_knows_is_refused(name: str, near: str) -> None:
    ((path, message),) = found(["Modality", name]).items()
    assert path == "questionTypes[1]"
    assert f"no prompt knows {name!r}" in message
    assert (f"did you mean {near!r}?" in message) == bool(near)
    assert "generator.customQuestionTypes" in message


def test_what_is_known_passes() -> None:
    assert found(list(KNOWN_QUESTION_TYPES)) == {}
    assert found(["diagnosis", " GRADING "]) == {}
    assert found(["Diagnosis", "Laterality"], OWN) == {}


@pytest.mark.parametrize(
    ("types", "own", "path", "said"),
    [
        (["Diagnosis"], OWN, "customQuestionTypes.Laterality", "does not ask for it"),
        (
            ["Diagnosis"],
            {"diagnosis": "x"},
            "customQuestionTypes.diagnosis",
            "there is such a kind already",
        ),
        (["Lateralty"], OWN, "questionTypes[0]", "did you mean 'Laterality'?"),
        (["laterality"], OWN, "questionTypes[0]", "did you mean 'Laterality'?"),
    ],
)
def test_a_type_of_ones_own_is_named_alike(types: list[str], own: dict[str, str], path: str, said: str) -> None:
    assert said in found(types, own)[path]


def test_the_stage_is_told_what_it_asks_for() -> None:
    values: dict[str, Any] = {
        "generator.questionTypes": ["Diagnosis", "Laterality"],
        "generator.customQuestionTypes": OWN,
    }
    parameters = stage_parameters(resolve(spec_with(values)), "c", "generate", 1)
    assert isinstance(parameters, GenerateParameters)
    assert parameters.custom_question_types == OWN
