"""One normal form per meaning, and the digests that stand on it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

#: YAML 1.1 reads `1e-4` (no dot) as text; such text among free-form options is a number that YAML misread.
_NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


def normalise(value: Any) -> Any:
    """One form per meaning, for free-form options: 3.0 → 3, "1e-4" → 0.0001; recursive over lists and objects."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        text = value.strip()
        if text.lstrip("+-").isdecimal():
            return int(text)
        return _each(float(text), normalise) if math.isfinite(float(text)) else value
    return _each(value, normalise)


def _canonical(value: Any) -> Any:
    """As `normalise`, but text stays text: the folders "1" and "1.0" are two folders."""
    return _each(value, _canonical)


def _each(value: Any, inner: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: inner(item) for key, item in sorted(((str(k), v) for k, v in value.items()), key=lambda kv: kv[0])}
    if isinstance(value, list | tuple):
        return [inner(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def canonical_json(value: Any) -> str:
    """JSON text that is equal exactly when the values are: keys sorted, 3.0 written as 3, text left alone."""
    return json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def sha256_of(value: Any) -> str:
    """Hex sha256 over `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


class NotHashed:
    """Annotates a field that says how something is reached, or how fast: changing it must not repeat paid work."""


NOT_HASHED = NotHashed()


@dataclass(frozen=True)
class HashedAs:
    """Annotates a field of which a part changes results, and the rest must not repeat paid work."""

    part: Callable[[Any], Any]
    """The field's value → what of it counts."""


@dataclass(frozen=True)
class Since:
    """Annotates a required field that a version adds to what is hashed: `top_p: Annotated[TopP, Since(1.0)]`.

    A preset-owned field has no default in its `Resolved` class that could be left out of a hash. This value is left out
    instead: a cycle that does as before finds what earlier versions have made. Like a default it must never change.
    """

    value: Any
    """What versions without the field did."""


def meaning(value: Any, *, defaults: bool = False) -> Any:
    """What of a model counts in a hash, as JSON with wire names; recursive over models, lists and objects.

    A field that has its default, or the value of its `Since`, is left out, so a version that adds a field finds what
    earlier ones have made. A default must therefore never change its value without the code version of the stages that
    read it.

    Args:
        value: a model or a part of one.
        defaults: keep fields that have their defaults: what to show to people.
    """
    if isinstance(value, BaseModel):
        return {
            alias: part
            for name, alias, default, of in _counted(type(value))
            if ((part := meaning(of(getattr(value, name)), defaults=defaults)) is not None or default is _NO_DEFAULT)
            and (defaults or part != default)
        }
    if isinstance(value, dict):
        return {key: meaning(item, defaults=defaults) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [meaning(item, defaults=defaults) for item in value]
    return to_jsonable_python(value)


_NO_DEFAULT = object()


@cache
def _counted(model: type[BaseModel]) -> tuple[tuple[str, str, Any, Callable[[Any], Any]], ...]:
    """Name, wire name and default's meaning of each field that counts in a hash, and what of its value does."""
    return tuple(
        (name, field.alias or name, _default(field), _part(field))
        for name, field in model.model_fields.items()
        if NOT_HASHED not in field.metadata
    )


def _part(field: FieldInfo) -> Callable[[Any], Any]:
    return next((note.part for note in field.metadata if isinstance(note, HashedAs)), lambda value: value)


def _default(field: FieldInfo) -> Any:
    for since in field.metadata:
        if isinstance(since, Since):
            return meaning(since.value)
    if field.is_required() or (get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1):
        return _NO_DEFAULT  # a tag says which model it is: without it, equal fields of two models would be one
    return meaning(_part(field)(field.get_default(call_default_factory=True)))


def combined_digest(digests: Sequence[str]) -> str:
    """Digest of a sharded stage: the hash of its shards' digests in order; of a single shard, that shard's own."""
    return digests[0] if len(digests) == 1 else sha256_of({"shards": list(digests)})
