"""Annotated types that fields of the API share: what they refuse, here and in the CRD."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from .cel_rules import Rule
from .hashing import normalise


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
ProperFraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
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
