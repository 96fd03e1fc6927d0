"""What differs between two sets of a stage's parameters, named as the user wrote them: by path of the spec."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from medgr2_api.hashing import canonical_json, meaning
from medgr2_api.stages import StageParameters, definition

_SHOWN_LENGTH = 120


def parameter_changes(stage: str, before: StageParameters | dict[str, Any], after: StageParameters) -> Iterator[str]:
    """`policy.sft.numEpochs: 1 → 2`, for each value that differs.

    Args:
        stage: whose parameters these are.
        before: as the stage was made; a document where it is of a form that this version cannot read.
        after: as it would be made now.
    """
    places = definition(stage).spec_paths
    for path, old, new in _changes(meaning(before, defaults=True), meaning(after, defaults=True), ""):
        field, dot, rest = path.partition(".")
        yield f"{places.get(field, field)}{dot}{rest}: {shown(old)} → {shown(new)}"


def shown(value: Any) -> str:
    """A value for people: on one line, and not too long for it."""
    if value is None or value == "":
        return "none"
    text = value if isinstance(value, str) else canonical_json(value)
    return text if len(text) <= _SHOWN_LENGTH else f"{text[: _SHOWN_LENGTH - 1]}…"


def _changes(old: Any, new: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """(path, old value, new value) of each leaf that differs; None: it is not there."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _changes(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, now) in enumerate(zip(old, new, strict=True)):
            yield from _changes(before, now, f"{path}[{index}]")
    elif old != new:
        yield path, old, new
