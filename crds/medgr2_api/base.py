"""What every API model shares: camelCase on the wire, unknown fields refused, and one normal form for hashing."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

#: YAML 1.1 reads `1e-4` (no dot) as text; such text in a numeric place is a number that YAML misread.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class Model(BaseModel):
    """Base of every API model. Attribute docstrings become the field descriptions that `kubectl explain` shows."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )

    rules: ClassVar[tuple[Rule, ...]] = ()
    """CEL rules of this object (`x-kubernetes-validations`)."""

    def dump(self) -> dict[str, Any]:
        """The JSON form with wire names; unset optional fields are left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


@dataclass(frozen=True)
class Rule:
    """A CEL rule that the API server checks; the model that carries it checks the same in Python."""

    cel: str
    message: str


class ApiEnum(StrEnum):
    """An enum whose values are the API's PascalCase words."""


def normalise(value: Any) -> Any:
    """One form per meaning, for free-form options: 3.0 → 3, "1e-4" → 0.0001; recursive over lists and objects."""
    if isinstance(value, dict):
        return {str(key): normalise(item) for key, item in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [normalise(item) for item in value]
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def canonical_json(value: Any) -> str:
    """JSON text that is equal exactly when the normalised values are equal."""
    return json.dumps(normalise(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def sha256_of(value: Any) -> str:
    """Hex sha256 over `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def relative_path(path: str) -> str:
    """Refuses what could leave the workspace.

    Raises:
        ValueError: absolute path, backslash, NUL, or a `..` part.
    """
    if path.startswith(("/", "~")) or "\\" in path or "\0" in path:
        raise ValueError(f"{path!r} must be a path relative to the workspace")
    if ".." in path.split("/"):
        raise ValueError(f"{path!r} must not contain '..'")
    return path


RELATIVE_PATH_PATTERN = r"^([^/~\\.][^\\]*|\.[^/.\\][^\\]*)?$"

RelativePath = Annotated[str, AfterValidator(relative_path), Field(max_length=512)]
FreeForm = Annotated[dict[str, Any], BeforeValidator(lambda v: normalise(v) if isinstance(v, dict) else v)]
"""Options passed through to a library; kept in normal form, so that equal settings hash equally."""
KubernetesObject = dict[str, Any]
"""A Kubernetes API fragment that is passed through unread (x-kubernetes-preserve-unknown-fields)."""
DNSLabel = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$", max_length=63)]
