"""The prompts: what is known of modality and type, one schema, one hash over all that goes in."""

from __future__ import annotations

from importlib import resources

import pytest

from medgr2_api.generator import GENERATORS, KNOWN_QUESTION_TYPES, Paradigm
from medgr2_jobs.generate import candidate_schema, prompt_templates
from medgr2_jobs.prompts import answers

TYPES = ["Diagnosis", "Procedural", "Descriptive", "Modality", "Anatomy", "Grading"]


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("CT", "attenuation"),
        ("CT(Computed Tomography)", "attenuation"),
        ("MR (Mag-netic Resonance Imaging)", "sequence"),
        ("MRI", "sequence"),
        ("X-Ray", "projection"),
        ("ultrasound", "echoes"),
        ("Dermoscopy", "pigment network"),
        ("Fundus Photography", "optic disc"),
        ("OCT (Optical Coherence Tomography)", "cross-section of the retina"),
        ("Microscopy Images", "nuclei"),
        ("Direct", ""),
        ("", ""),
        ("Octopus", ""),
    ],
)
def test_modalities_are_known_by_their_names(named: str, words: str) -> None:
    found = prompt_templates.load(Paradigm.DIRECT).priors.modality(named)
    assert words in found
    assert bool(found) == bool(words)


@pytest.mark.parametrize("paradigm", list(Paradigm))
def test_priors_are_in_the_prompt_where_they_are_known(paradigm: Paradigm) -> None:
    prompt = prompt_templates.load(paradigm)
    for kind in TYPES:
        assert prompt.priors.question_type(kind) in prompt.render(modality="OCT", question_type=kind)
        assert prompt.priors.question_type(kind)
    assert "What OCT can show: a cross-section" in prompt.render(modality="OCT", question_type="Other")
    bare = prompt.render(modality="", question_type="Other")
    assert "can show" not in bare
    assert 'A question of the type "Other":' not in bare
    assert "\n\n\n" not in bare
    assert "{%" not in bare


def test_the_prompt_describes_the_fields_that_are_checked() -> None:
    text = prompt_templates.load(Paradigm.DIRECT).render(modality="CT", question_type="Grading")
    for name, field in candidate_schema.GeneratedTriplet.model_fields.items():
        value = f'["{field.description}"]' if field.annotation == list[str] else f'"{field.description}"'
        assert f'  "{name}": {value}' in text


@pytest.mark.parametrize("name", ["direct.jinja", "_output.jinja", "priors.yaml"])
def test_the_hash_covers_each_source(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = prompt_templates.load(Paradigm.DIRECT).sha256
    folder = resources.files(prompt_templates.__package__) / "prompts"
    texts = {one: (folder / one).read_text() for one in ("direct.jinja", "_output.jinja", "priors.yaml")}
    texts[name] += "\n# one more line\n"

    class Source:
        def __init__(self, one: str) -> None:
            self.one = one

        def read_text(self, encoding: str) -> str:
            return texts[self.one]

    class Folder:
        def __truediv__(self, one: str) -> object:
            return self if one == "prompts" else Source(one)

    monkeypatch.setattr(prompt_templates.resources, "files", lambda package: Folder())
    assert prompt_templates.load.__wrapped__(Paradigm.DIRECT).sha256 != before


@pytest.mark.parametrize(
    ("kind", "words"),
    [("gemini", "responseSchema"), ("openAI", "response_format"), ("vllm", "uuid"), ("plugin", '"required"')],
)
def test_preview_shows_what_is_sent(kind: str, words: str) -> None:
    prompt = prompt_templates.load(Paradigm.META_COGNITIVE)
    text = prompt_templates.preview(Paradigm.META_COGNITIVE, "CT", "Diagnosis", GENERATORS[kind])
    assert prompt.render(modality="CT", question_type="Diagnosis") in text
    assert prompt.sha256 in text
    assert words in text


def test_the_contract_knows_the_types_that_the_prompts_know() -> None:
    priors = prompt_templates.load(Paradigm.DIRECT).priors
    assert set(priors.question_types) == {answers.normalise(name) for name in KNOWN_QUESTION_TYPES}


def test_a_type_of_ones_own_is_asked_for_in_its_own_words() -> None:
    prompt = prompt_templates.load(Paradigm.DIRECT)
    asks = "which side of the body is affected."
    assert f'A question of the type "Laterality": {asks}' in prompt.render(
        modality="CT", question_type="Laterality", asks=asks
    )
    assert "A question of the type" not in prompt.render(modality="CT", question_type="Laterality")
