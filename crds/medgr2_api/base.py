"""What every API model shares: camelCase on the wire, unknown fields refused, and one normal form for hashing."""

from __future__ import annotations

import hashlib
import json
import math
import re
import types
from collections.abc import Callable
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, ClassVar, Self, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from .cel_rules import Rule

#: YAML 1.1 reads `1e-4` (no dot) as text; such text among free-form options is a number that YAML misread.
_NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


class Model(BaseModel):
    """Base of every API model. Attribute docstrings become the field descriptions that `kubectl explain` shows."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,  # what is refused may be an API key in the wrong place
    )

    rules: ClassVar[tuple[Rule, ...]] = ()
    """Rules about this object as a whole (`x-kubernetes-validations`)."""

    @field_validator("*", mode="before")
    @classmethod
    def _boolean_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and info.field_name and _takes_numbers(cls, info.field_name):
            raise PydanticCustomError("not_a_boolean", "must be a number, not true or false")
        return value

    @model_validator(mode="after")
    def _keeps_rules(self) -> Self:
        for rule in self.rules:
            rule.enforce(self)
        return self

    def dump(self) -> dict[str, Any]:
        """The JSON form with wire names; unset optional fields are left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class ApiEnum(StrEnum):
    """An enum whose values are the API's PascalCase words."""


@cache
def _takes_numbers(model: type[BaseModel], field: str) -> bool:
    """Whether a field takes numbers and no booleans."""
    kinds = _kinds(model.model_fields[field].annotation)
    return bool(kinds & {int, float}) and bool not in kinds


def _kinds(annotation: Any) -> set[Any]:
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return {kind for part in get_args(annotation) for kind in _kinds(part)}
    return {annotation}


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


def relative_path(path: str) -> str:
    """Refuse what could leave the workspace.

    Raises:
        ValueError: absolute path, backslash, NUL, or a `..` part.
    """
    if path.startswith(("/", "~")) or "\\" in path or "\0" in path:
        raise ValueError(f"{path!r} must be a path relative to the workspace")
    if ".." in path.split("/"):
        raise ValueError(f"{path!r} must not contain '..'")
    return path


#: What keys of OpenAI-compatible services, Google and Hugging Face look like (RE2 syntax, which CEL reads too).
LITERAL_KEY = r"(^|[^A-Za-z0-9])(sk-[A-Za-z0-9_-]{16,}|AIza[A-Za-z0-9_-]{30,}|hf_[A-Za-z0-9]{20,})"
_LITERAL_KEY = re.compile(LITERAL_KEY)
_SECRET_NAME = r"(?i)(key|token|secret|password|passwd)$"
_HTTP_URL = r"^https?://[^@\s?#]+$"
_UNSAFE_PATH = r"^[/~]|\\|\x00|(^|/)\.\.(/|$)"
_DNS_LABEL = r"^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$"


def no_literal_key(text: str) -> bool:
    """Whether the text holds nothing that looks like an API key."""
    return _LITERAL_KEY.search(text) is None


def _variable(variable: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(variable.get("name"), str) or not variable["name"]:
        raise ValueError("a variable needs a name")
    if not isinstance(variable.get("value", ""), str):
        raise ValueError(f"the value of {variable['name']} must be text: put it in quotes")
    return _harmless(variable)


def _no_secret_value(variable: dict[str, Any]) -> bool:
    return not variable.get("value") or re.search(_SECRET_NAME, str(variable.get("name", ""))) is None


def _harmless(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse, anywhere inside, what looks like an API key, and numbers that JSON cannot hold."""
    queue: list[Any] = [value]
    for item in queue:
        if isinstance(item, dict | list):
            queue.extend(item.values() if isinstance(item, dict) else item)
        elif isinstance(item, str) and not no_literal_key(item):
            raise ValueError("holds what looks like an API key: put it into a Secret and refer to that")
        elif isinstance(item, float) and not math.isfinite(item):
            raise ValueError("must not hold infinite numbers or NaN")
    return value


def cel_text(text: str) -> str:
    """A CEL string literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_ANY_OBJECT: dict[str, Any] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_NO_KEY_MESSAGE = "looks like it holds an API key: put it into a Secret and refer to that"

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
RelativePath = Annotated[
    str,
    Field(max_length=512),
    AfterValidator(relative_path),
    Rule(
        f"!self.matches({cel_text(_UNSAFE_PATH)})",
        "must be a path relative to the workspace, without '..' and backslashes",
    ),
]
FreeForm = Annotated[
    dict[str, Any],
    BeforeValidator(lambda v: normalise(v) if isinstance(v, dict) else v),
    AfterValidator(_harmless),
    WithJsonSchema(_ANY_OBJECT),
]
"""Options passed through to a library; kept in normal form, so that equal settings hash equally."""
KubernetesObject = Annotated[dict[str, Any], AfterValidator(_harmless), WithJsonSchema(_ANY_OBJECT)]
"""A Kubernetes API fragment that is passed through unread (x-kubernetes-preserve-unknown-fields)."""
EnvVar = Annotated[
    dict[str, Any],
    AfterValidator(_variable),
    WithJsonSchema(
        {
            **_ANY_OBJECT,
            "properties": {
                "name": {"type": "string", "minLength": 1, "maxLength": 256, "description": "Name of the variable."},
                "value": {"type": "string", "maxLength": 8192, "description": "Its value, when it is no secret."},
            },
            "required": ["name"],
        }
    ),
    Rule(
        f"!has(self.value) || self.value == '' || !self.name.matches({cel_text(_SECRET_NAME)})",
        "must not hold a secret in 'value': use valueFrom.secretKeyRef",
        _no_secret_value,
    ),
    Rule(f"!has(self.value) || !self.value.matches({cel_text(LITERAL_KEY)})", _NO_KEY_MESSAGE),
]
"""A container's environment variable; what is secret comes from a Secret."""
DNSLabel = Annotated[
    str,
    Field(min_length=1, max_length=63),
    Rule(
        f"self.matches({cel_text(_DNS_LABEL)})",
        "must be an RFC 1035 label: lower-case letters, digits and '-', starting with a letter",
        lambda name: re.fullmatch(_DNS_LABEL, name) is not None,
    ),
]
HttpURL = Annotated[
    str,
    Field(max_length=2048),
    Rule(
        f"self.matches({cel_text(_HTTP_URL)})",
        "must be an http(s) address without user, password, query or fragment",
        lambda url: re.fullmatch(_HTTP_URL, url) is not None,
    ),
]
Argument = Annotated[
    str,
    Field(max_length=1024),
    Rule(f"!self.matches({cel_text(LITERAL_KEY)})", _NO_KEY_MESSAGE, no_literal_key),
    Rule("!self.startsWith('--api-key')", "must not set an API key", lambda text: not text.startswith("--api-key")),
]
"""A command line argument."""


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _finite_only(values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    return {key: value for key, value in values.items() if _finite_or_none(value) is not None}


FiniteOrNone = Annotated[float | None, BeforeValidator(_finite_or_none)]
"""A figure that may be unknown."""
Figures = Annotated[dict[str, float], BeforeValidator(_finite_only)]
"""Named figures. What is not finite is left out: a loss that diverged must not make a report unreadable."""
