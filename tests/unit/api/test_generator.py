"""Kinds of generator: what others know of a kind follows from its class."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.cycle_documents import spec_with

from medgr2_api.generator import GENERATORS, Generator, GeneratorKind
from medgr2_api.presets import resolve
from medgr2_api.stages.generate import Provider

KEY = {"name": "s", "key": "k"}
#: The least that a spec says of each kind.
LEAST: dict[str, dict[str, Any]] = {
    "gemini": {"model": "m", "apiKeySecretRef": KEY},
    "openAI": {"model": "m", "baseURL": "https://api.example.com/v1"},
    "vllm": {"model": "m"},
    "scripted": {},
    "plugin": {"name": "p", "version": "1.0", "model": "m"},
}


def test_every_kind_has_its_field_and_every_field_its_kind() -> None:
    assert set(LEAST) == set(GENERATORS)
    fields = Generator.model_fields
    for name, kind in GENERATORS.items():
        chosen = Generator.model_validate({name: LEAST[name]}).chosen
        assert type(chosen) is kind
    named = {str(field.alias) for field in fields.values() if "GeneratorKind" in str(_bases(field.annotation))}
    assert named == set(GENERATORS)


def _bases(annotation: Any) -> list[str]:
    kinds = [annotation, *getattr(annotation, "__args__", ())]
    return [base.__name__ for kind in kinds if isinstance(kind, type) for base in kind.__mro__]


@pytest.mark.parametrize(
    ("name", "more", "leaves"),
    [
        ("gemini", {"baseURL": "http://proxy.svc"}, True),
        ("openAI", {}, True),
        ("openAI", {"external": False}, False),
        ("openAI", {"baseURL": "http://vllm.models.svc:8000/v1"}, False),
        ("openAI", {"baseURL": "http://vllm.models.svc:8000/v1", "external": True}, True),
        ("vllm", {}, False),
        ("plugin", {}, True),
        ("plugin", {"baseURL": "http://127.0.0.1:1"}, True),
        ("plugin", {"external": False}, False),
    ],
)
def test_spec_and_request_agree_on_what_leaves_the_house(name: str, more: dict[str, Any], leaves: bool) -> None:
    spec = resolve(spec_with({"generator": {name: LEAST[name] | more}}))
    assert spec.generator.external is leaves
    told = Provider.model_validate({"kind": name, "external": spec.generator.external})
    assert told.has_egress is leaves


def test_a_new_kind_leaves_the_house_and_costs_money_until_it_says_otherwise() -> None:
    class New(GeneratorKind):
        kind = "new"

    assert New().has_egress
    assert New.charges
    assert New.asked


def test_a_request_for_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="no generator 'claude': this version has gemini, openAI"):
        Provider(kind="claude")
