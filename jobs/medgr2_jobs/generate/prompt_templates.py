"""The prompts: one versioned template per paradigm, over one output schema, with what is known of modality and type."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml
from jinja2 import DictLoader, Environment, StrictUndefined, Template

from medgr2_api.generator import GeneratorKind, Paradigm, SchemaDialect

from ..prompts.answers import normalise
from . import candidate_schema

_FILES = {
    Paradigm.DIRECT: "direct.jinja",
    Paradigm.STEP_BY_STEP: "step_by_step.jinja",
    Paradigm.META_COGNITIVE: "meta_cognitive.jinja",
}
_SHARED = "_output.jinja"
_PRIORS = "priors.yaml"


@dataclass(frozen=True)
class PromptPriors:
    """What is known of modalities and of question types, by normalised name."""

    modalities: dict[str, str]
    question_types: dict[str, str]

    def modality(self, name: str) -> str:
        """What such images show; empty for a modality that is not known.

        Data sets write "CT(Computed Tomography)" or "MR (Magnetic Resonance Imaging)": the longest name that stands in
        it as whole words is meant.
        """
        words = f" {' '.join(normalise(name).replace('(', ' ').replace(')', ' ').split())} "
        names = [prior_name for prior_name in self.modalities if f" {prior_name} " in words]
        return self.modalities[max(names, key=len)] if names else ""

    def question_type(self, name: str) -> str:
        """What such a question asks for; empty for a type that is not known."""
        return self.question_types.get(normalise(name), "")


@dataclass(frozen=True)
class PromptTemplate:
    """The template of a paradigm."""

    template: Template
    priors: PromptPriors
    sha256: str
    """Over the template and all that goes into it: which text exactly was used, whatever its version says."""

    def render(self, *, modality: str, question_type: str, asks: str = "") -> str:
        """The user turn that goes beside the image.

        Args:
            modality: of the image; may be empty.
            question_type: what to ask for.
            asks: what such a question asks for, where it is of a kind that the prompts do not know.
        """
        return self.template.render(
            modality=modality,
            question_type=question_type,
            modality_prior=self.priors.modality(modality),
            type_prior=asks or self.priors.question_type(question_type),
            option_count=candidate_schema.OPTION_COUNT,
            fields=_fields(),
        )


@cache
def load(paradigm: Paradigm) -> PromptTemplate:
    """The template of a paradigm."""
    folder = resources.files(__package__) / "prompts"
    sources = {name: (folder / name).read_text(encoding="utf-8") for name in (_FILES[paradigm], _SHARED, _PRIORS)}
    environment = Environment(
        loader=DictLoader(sources),
        undefined=StrictUndefined,
        autoescape=False,  # not HTML
        trim_blocks=True,
        lstrip_blocks=True,
    )
    included = [*sources.values(), json.dumps(_fields())]
    digest = hashlib.sha256("\0".join(included).encode()).hexdigest()
    return PromptTemplate(environment.get_template(_FILES[paradigm]), _priors(sources[_PRIORS]), digest)


def preview(paradigm: Paradigm, modality: str, question_type: str, kind: type[GeneratorKind]) -> str:
    """What is sent to a generator of this kind about one image, for people to read.

    Args:
        paradigm: which template.
        modality: of the image; may be empty.
        question_type: what to ask for.
        kind: of generator: each takes the schema in its own words.
    """
    prompt = load(paradigm)
    schema = _SCHEMAS[kind.dialect]()
    image_name = ", with its sha256 as uuid" if kind.names_images else ""
    return (
        f"# paradigm {paradigm}, template sha256 {prompt.sha256}\n"
        f"# user turn: the image (PNG{image_name}), then this text\n\n"
        f"{prompt.render(modality=modality, question_type=question_type)}\n\n"
        f"# beside it, where the server knows it\n\n{json.dumps(schema, indent=2)}\n"
    )


_SCHEMAS: dict[SchemaDialect, Callable[[], dict[str, Any]]] = {
    SchemaDialect.RESPONSE_FORMAT: lambda: {"response_format": candidate_schema.response_format()},
    SchemaDialect.RESPONSE_SCHEMA: lambda: {"responseSchema": candidate_schema.json_schema()},
    SchemaDialect.JSON_SCHEMA: candidate_schema.json_schema,
}


def _priors(text: str) -> PromptPriors:
    document = yaml.safe_load(text)
    modalities = {
        normalise(name): prior["shows"]
        for main, prior in document["modalities"].items()
        for name in (main, *prior["also"])
    }
    return PromptPriors(modalities, {normalise(name): asks for name, asks in document["questionTypes"].items()})


@cache
def _fields() -> list[dict[str, Any]]:
    """The fields of the output schema, as a prompt shows them."""
    return [
        {"name": name, "hint": field["description"], "list": field["type"] == "array"}
        for name, field in candidate_schema.json_schema()["properties"].items()
    ]
