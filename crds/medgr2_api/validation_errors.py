"""What is wrong with a cycle, in words for its author: pydantic's errors with paths, near names and YAML's traps."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from .types import no_literal_key

Location = tuple[int | str, ...]
_FREE_TEXT_LIMIT = 60
_SHOWN_FIELDS = 12
#: Errors that are explained: near names take milliseconds each, and a document can have as many errors as it has words.
EXPLAINED = 100


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and where."""

    path: str
    """Where, with the names of the file: `spec.data.sources[0].uri`; empty: the file as a whole."""
    message: str
    """What, and what to do."""
    line: int | None = None
    """Line in the file, from 1, when it is known."""

    def __str__(self) -> str:
        line = f" (line {self.line})" if self.line else ""
        return f"{self.path}{line}: {self.message}" if self.path else f"{self.message}{line}"


class CycleError(ValueError):
    """A cycle that cannot be used. `str()` names every problem."""

    def __init__(self, problems: Sequence[Problem], where: str = "") -> None:
        self.problems = list(problems)
        self.where = where
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        head = f"{where}: {count}" if where else count
        super().__init__("\n".join([head, *(f"  {problem}" for problem in self.problems)]))


def dotted(location: Location) -> str:
    """`("spec", "sources", 0)` → `spec.sources[0]`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def explain(
    error: ValidationError, model: type[BaseModel], raw: Callable[[Location], str | None]
) -> list[tuple[Location, str]]:
    """Pydantic's errors as places and messages.

    Args:
        error: what `model` raised.
        model: the model of the whole document.
        raw: the text that stands in the file at a place, when it is a single value.
    """
    errors = error.errors(include_url=False)
    found = [(detail["loc"], _message(detail, model, raw)) for detail in errors[:EXPLAINED]]
    if more := errors[EXPLAINED:]:
        found.append((more[0]["loc"], f"is the first of {len(more)} further problems"))
    return found


def _message(detail: ErrorDetails, model: type[BaseModel], raw: Callable[[Location], str | None]) -> str:
    kind, location, given = detail["type"], detail["loc"], detail["input"]
    if kind == "extra_forbidden":
        return _unknown_field(location, model)
    if kind == "missing":
        return f"missing. {_description(location, model)}".rstrip()
    if kind in ("enum", "literal_error"):
        allowed = re.findall(r"'([^']*)'", detail["ctx"]["expected"])
        near = _near(str(given), allowed)
        hint = f": did you mean {near!r}?" if near else ""
        return f"{_shown(given, raw(location))} is not one of {', '.join(allowed)}{hint}"
    if kind == "string_type" and isinstance(given, bool | int | float):
        word = "a boolean" if isinstance(given, bool) else "a number"
        return f"must be text, but YAML reads {raw(location) or given} as {word}: put it in quotes"
    if kind == "not_a_boolean":
        return f"must be a number, but YAML reads {raw(location) or given} as a boolean"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"must be an object ('name: value' lines), not {_kind(given)}"
    if kind == "list_type":
        return f"must be a list ('- item' lines), not {_kind(given)}"
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    if kind in ("bool_type", "bool_parsing"):
        return f"must be true or false, not {_shown(given, raw(location))}"
    message = re.sub(r"^\w+ should ", "must ", detail["msg"]).replace("greater than or equal to", "at least")
    message = message.replace("less than or equal to", "at most").replace("a valid integer", "an integer")
    return message if isinstance(given, dict | list) else f"{message}, not {_shown(given, raw(location))}"


def _shown(given: Any, raw: str | None) -> str:
    if given is None:
        return "an empty value"
    text = raw if raw is not None else str(given)
    if not no_literal_key(text):
        return "what looks like an API key"
    return repr(text) if len(text) <= _FREE_TEXT_LIMIT else f"{text[:_FREE_TEXT_LIMIT]!r}…"


def _kind(given: Any) -> str:
    kinds = ((dict, "an object"), (list, "a list"), (bool, "true or false"), (int | float, "a number"), (str, "text"))
    return next((word for kind, word in kinds if isinstance(given, kind)), "an empty value")


def _near(name: str, names: Sequence[str]) -> str | None:
    """The name that was probably meant: the same but for case, `-` and `_`, or spelt nearly so."""
    plain = {re.sub(r"[-_ ]", "", item).lower(): item for item in names}
    close = difflib.get_close_matches(re.sub(r"[-_ ]", "", name).lower(), plain, n=1, cutoff=0.75)
    return plain[close[0]] if close else None


def _unknown_field(location: Location, model: type[BaseModel]) -> str:
    name, parent = str(location[-1]), location[:-1]
    here = list(_fields(_model_at(parent, model)))
    near = _near(name, here)
    if near:
        return f"unknown field {name!r}: did you mean {near!r}?"
    homes = [path for path, fields in _objects(model) if name in fields]
    if homes:
        return f"unknown field {name!r}: belongs under {' or '.join(_nearest_first(homes, dotted(parent))[:3])}"
    known = ", ".join(here[:_SHOWN_FIELDS]) + (", …" if len(here) > _SHOWN_FIELDS else "")
    return f"unknown field {name!r}: known here are {known}"


def _nearest_first(paths: list[str], place: str) -> list[str]:
    """Those inside `place` first, then those that share more of the way."""
    parts = place.split(".")

    def shared(path: str) -> int:
        return sum(1 for a, b in zip(parts, path.split("."), strict=False) if a == b)

    best = max(map(shared, paths))
    return [path for path in paths if shared(path) == best]


def _fields(model: type[BaseModel] | None) -> dict[str, Any]:
    """Wire name → annotation."""
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()} if model else {}


def _submodel(annotation: Any) -> type[BaseModel] | None:
    """The model inside an annotation such as `list[Model] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _submodel(part))), None)


def _model_at(location: Location, model: type[BaseModel] | None) -> type[BaseModel] | None:
    for part in location:
        if isinstance(part, str):
            model = _submodel(_fields(model).get(part))
    return model


def _objects(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of the document: path and fields. The status is not the author's to write."""
    fields = _fields(model)
    yield path, fields
    for name, annotation in fields.items():
        inner = _submodel(annotation)
        if inner is not None and name not in ("status", "metadata"):
            many = "[]" if "list[" in str(annotation) else ""
            yield from _objects(inner, f"{path}.{name}{many}".lstrip("."))


def _description(location: Location, model: type[BaseModel]) -> str:
    parent = _model_at(location[:-1], model)
    fields = parent.model_fields.values() if parent else ()
    text = next((field.description for field in fields if field.alias == location[-1]), "") or ""
    return " ".join(text.split())
