"""Where the examples publish, literally: a change of these hashes makes everybody pay again.

When a stage is meant to make something else, raise its code version and write the pins anew: `make pins`.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import yaml
from pydantic import BaseModel

from medgr2_api.cycle import Cycle
from medgr2_api.hashing import Since, meaning, sha256_of
from medgr2_api.presets import resolve
from medgr2_api.stages import definition, input_hash, stage_names, stage_parameters
from medgr2_operator.plan.graph import Shape, build

ROOT = Path(__file__).parents[3]
HASHES = Path(__file__).with_name("pinned_hashes.json")
DEFAULTS = Path(__file__).with_name("pinned_defaults.json")
ITERATIONS = 2
REMEDY = "If that is meant, write the pins anew with `make pins`, and look at what git diff says has changed"


def hashes() -> dict[str, dict[str, str]]:
    """Of each cycle in examples/ the input hash of each stage, with made-up digests of what it reads."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted((ROOT / "examples").glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            if document and document.get("kind") == "MedGR2Cycle":
                cycle = Cycle.model_validate(document)
                spec, name = resolve(cycle.spec), cycle.metadata.name
                found[f"{path.name} {name}"] = {
                    str(node.key): input_hash(
                        node.key.name,
                        stage_parameters(spec, name, node.key.name, node.key.iteration),
                        {item.role: sha256_of(str(item.sources[0])) for item in node.inputs},
                    )
                    for node in build(Shape.of(spec), ITERATIONS)
                }
    return found


def defaults() -> dict[str, dict[str, Any]]:
    """Of each stage the code version, and what its parameters mean where the spec says nothing."""
    return {
        name: {
            "codeVersion": definition(name).code_version,
            "defaults": dict(_defaults(definition(name).parameters, "")),
        }
        for name in stage_names()
    }


def test_the_value_of_a_since_is_pinned_like_a_default() -> None:
    class Late(BaseModel):
        top_p: Annotated[float, Since(1.0)]

    assert dict(_defaults(Late, "a.")) == {"a.top_p": 1}


def _defaults(model: type[BaseModel], path: str) -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        here = f"{path}{field.alias or name}"
        if not field.is_required():
            yield here, meaning(field.get_default(call_default_factory=True), defaults=True)
        for since in field.metadata:
            if isinstance(since, Since):
                yield here, meaning(since.value, defaults=True)
        for inner in _models(field.annotation):
            yield from _defaults(inner, f"{here}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Annotated, list, Sequence, typing.Union, types.UnionType):
        for part in get_args(annotation):
            yield from _models(part)


def test_hashes_of_the_examples() -> None:
    problems = differences(json.loads(HASHES.read_text()), hashes())
    assert not problems, "\n".join(problems) + f"\nWhat has run would run again, unless its stage is new. {REMEDY}"


def differences(pinned: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]) -> list[str]:
    """What is pinned otherwise than it is, not pinned, or pinned and gone; each with its cycle and stage."""
    return [
        f"{HASHES.name}: {cycle}: {stage}: pinned {before or 'nothing'}, now {after or 'nothing'}"
        for cycle in {**pinned, **now}
        for stage in {**pinned.get(cycle, {}), **now.get(cycle, {})}
        if (before := pinned.get(cycle, {}).get(stage)) != (after := now.get(cycle, {}).get(stage))
    ]


def test_a_new_stage_a_changed_and_a_gone_one_are_told() -> None:
    told = differences(
        {"c": {"sft@1": "a", "old@1": "b", "same@1": "s"}}, {"c": {"sft@1": "x", "new@1": "y", "same@1": "s"}}
    )
    assert [line.split(": ", 1)[1] for line in told] == [
        "c: sft@1: pinned a, now x",
        "c: old@1: pinned b, now nothing",
        "c: new@1: pinned nothing, now y",
    ]


def test_a_default_keeps_its_value_or_the_code_gets_a_version() -> None:
    """It is left out of the hash, so the same hash would name something else."""
    pinned, now = json.loads(DEFAULTS.read_text()), defaults()
    for name, stage in now.items():
        before = pinned.get(name, stage)
        if stage["codeVersion"] == before["codeVersion"]:
            for path, value in before["defaults"].items():
                assert stage["defaults"].get(path, value) == value, (
                    f"{name}: {path}: the default was {value!r}: raise the stage's code_version, then `make pins`"
                )
    assert now == pinned, f"{DEFAULTS.name}: new stages, defaults and code versions have to be pinned, too. {REMEDY}"


def write() -> None:
    """Pins what is now."""
    for path, document in ((HASHES, hashes()), (DEFAULTS, defaults())):
        path.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    write()
