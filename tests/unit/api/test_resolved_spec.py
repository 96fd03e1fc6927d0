"""The resolved spec: what the presets own is exactly what its models require, and nothing of it is ever absent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from tests.support.cycle_documents import spec_with

from medgr2_api import presets
from medgr2_api.curation import SelectionStrategy
from medgr2_api.cycle import CycleSpec, Preset, ResolvedSpec
from medgr2_api.model import Model
from medgr2_api.presets import resolve, resolve_with_origins
from medgr2_api.yaml_loader import load_cycle

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))
SERVER = {"openAI": {"model": "m", "baseURL": "http://x"}, "distillation": {}}
SCRIPTED = {"data.sources": [{"name": "p", "format": "Phantom", "phantom": {}}], "generator": {"scripted": {}}}
#: What follows from other values instead of a table.
DERIVED = {
    "data.sources.role",
    "data.sources.allowExternal",
    "generator.openAI.external",
    "generator.distillation.training.lora.alpha",
    "rewardModel.training.lora.alpha",
    "policy.sft.lora.alpha",
    "policy.grpo.lora.alpha",
    "policy.grpo.learningRate",
}


def _models(annotation: Any) -> Iterator[type[Model]]:
    """The models in an annotation: itself, of a union or of a list."""
    if get_origin(annotation) is Annotated:
        yield from _models(get_args(annotation)[0])
    elif isinstance(annotation, type) and issubclass(annotation, Model):
        yield annotation
    else:
        for part in get_args(annotation):
            yield from _models(part)


def _optional(field: FieldInfo) -> bool:
    return type(None) in get_args(field.annotation)


def _fields(model: type[Model], path: str = "") -> Iterator[tuple[str, type[Model], str]]:
    """(path on the wire, model, field) of every field of a spec; several where a part has several forms."""
    for name, field in model.model_fields.items():
        here = f"{path}.{field.alias or name}".lstrip(".")
        yield here, model, name
        for inner in _models(field.annotation):
            yield from _fields(inner, here)


def _owned() -> set[str]:
    """The paths where a model of the resolved spec, or one of its forms, requires what the user may leave out."""
    left_open = {path for path, model, name in _fields(CycleSpec) if _optional(model.model_fields[name])}
    return {
        path
        for path, model, name in _fields(ResolvedSpec)
        if path in left_open and not _optional(model.model_fields[name])
    }


def _is_trainer(path: str) -> bool:
    return path.rpartition(".")[2] in presets.TRAINER_FIELDS


def _spec_that_uses(path: str) -> CycleSpec:
    users = presets._USED_BY.get(path)
    selection = {"curation.selection": {"strategy": users[0]}} if users else {}
    return spec_with({**(SCRIPTED if path.startswith("generator.scripted.") else {"generator": SERVER}), **selection})


def test_the_table_holds_what_the_models_require_and_nothing_else() -> None:
    assert {path for path in presets._DEFAULT if not _is_trainer(path)} == _owned() - DERIVED
    assert _owned() >= DERIVED
    for preset, table in presets.PRESETS.items():
        assert {path for path in table if not _is_trainer(path)} <= _owned(), preset
        assert {path for path in table if _is_trainer(path)} <= {path for path, _, _ in _fields(ResolvedSpec)}, preset


def test_what_is_derived_is_what_follows_from_other_values() -> None:
    lora = {f"{part}.lora": {"rank": 4} for part in ("rewardModel.training", "policy.sft", "policy.grpo")}
    _, origins = resolve_with_origins(spec_with({"generator": SERVER, "data.sources": SOURCES, **lora}))
    found = {path.replace("[0]", "") for path, origin in origins.items() if origin.source == "derived"}
    assert found == DERIVED


SOURCES = [{"name": "a", "format": "OmniMedVQA", "uri": "a"}]


@pytest.mark.parametrize("path", [path for path in presets._DEFAULT if not _is_trainer(path)])
def test_a_missing_value_is_an_error_at_once(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = _spec_that_uses(path)
    monkeypatch.delitem(presets._DEFAULT, path)
    with pytest.raises((ValidationError, KeyError), match=path.rpartition(".")[2]):
        resolve(spec)


def test_a_value_without_a_field_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets._DEFAULT, "policy.grpo.groupSize", 8)
    with pytest.raises(ValidationError, match=r"policy\.grpo\.groupSize"):
        resolve(spec_with())


@pytest.mark.parametrize("path", ["policy.grpo.numGenerations", "rewardModel.promotion.minSpearman"])
def test_a_value_that_the_field_does_not_take_is_an_error_at_once(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets._DEFAULT, path, -2)
    with pytest.raises(ValidationError, match=path):
        resolve(spec_with())


def test_what_may_still_be_absent_says_what_that_means() -> None:
    """A new field that a preset was to own, but that the resolved spec forgets, has no such description."""
    for path, model, name in _fields(ResolvedSpec):
        field = model.model_fields[name]
        if not _optional(field) or path in _owned() or any(_models(field.annotation)) or dict in _kinds(field):
            continue
        assert "absent" in (field.description or "").lower() or "default" in (field.description or ""), path


def _kinds(field: FieldInfo) -> set[Any]:
    """Outermost kinds of a field's alternatives; a dict is a fragment of Kubernetes' API, passed through unread."""
    parts = [get_args(part)[0] if get_origin(part) is Annotated else part for part in get_args(field.annotation)]
    return {get_origin(part) or part for part in parts}


def _cases() -> Iterator[Any]:
    for path in EXAMPLES:
        yield pytest.param(lambda path=path: load_cycle(path).spec, id=path.name)
    for preset in Preset:
        for name, changes in {"server": {"generator": SERVER}, "scripted": SCRIPTED}.items():
            yield pytest.param(lambda p=preset, c=changes: spec_with({"preset": p, **c}), id=f"{preset}-{name}")
        for strategy in SelectionStrategy:
            chosen = {"preset": preset, "curation.selection": {"strategy": strategy}}
            yield pytest.param(lambda c=chosen: spec_with(c), id=f"{preset}-{strategy}")


@pytest.mark.parametrize("make", _cases())
def test_everything_resolves(make: Any) -> None:
    spec = make()
    resolved = resolve(spec)
    assert type(resolved) is ResolvedSpec
    assert resolve(resolved) == resolved
    # what the user said stays as it is
    given, filled = spec.dump(), resolved.dump()
    assert _within(given, filled)


def _within(part: Any, whole: Any) -> bool:
    if isinstance(part, dict):
        return all(key in whole and _within(value, whole[key]) for key, value in part.items())
    if isinstance(part, list):
        return len(part) == len(whole) and all(map(_within, part, whole))
    return bool(part == whole)


def test_a_selection_has_what_its_strategy_uses_and_nothing_else() -> None:
    for strategy in SelectionStrategy:
        selection = resolve(spec_with({"curation.selection": {"strategy": strategy}})).curation.selection
        uses = {path.rpartition(".")[2] for path, users in presets._USED_BY.items() if strategy in users}
        assert selection.dump().keys() == {"strategy", *uses}
