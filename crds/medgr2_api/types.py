"""Annotated types that fields of the API share: what they refuse, here and in the CRD."""

from __future__ import annotations

import json
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
_HTTP_URL = r"^https?://[^@\s?#]+$"
_UNSAFE_PATH = r"^[/~]|\\|\x00|(^|/)\.\.(/|$)"
_DNS_LABEL = r"^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$"


def no_literal_key(text: str) -> bool:
    """Whether the text holds nothing that looks like an API key."""
    return _LITERAL_KEY.search(text) is None


def levels_exceed(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested more than so many levels deep. No call of itself: that is what depth
    breaks."""
    level = [value]
    for _ in range(levels + 1):
        level = [item for item in level if isinstance(item, dict | list)]
        if not level:
            return False
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return True


def bytes_exceed(value: Any, most: int) -> bool:
    """Whether a JSON document takes more than so many bytes, written compactly in UTF-8.

    It stops where it knows, and looks at what stands in several places (YAML's anchors) each time: written out, a file
    of a megabyte could hold a hundred gigabytes.
    """
    queue = [value]
    while queue and most >= 0:
        item = queue.pop()
        if isinstance(item, dict):
            most -= len(item) + 1 + sum(_text_bytes(str(key)) + 1 for key in item) if item else 2
            queue.extend(item.values())
        elif isinstance(item, list):
            most -= len(item) + 1 if item else 2
            queue.extend(item)
        else:
            most -= _text_bytes(item) if isinstance(item, str) else len(repr(item))
    return most < 0


def _text_bytes(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogatepass"))


def harmless(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse, anywhere inside, what looks like an API key, numbers that JSON cannot hold, and what is nested too
    deep for those who walk through it."""
    if levels_exceed(value, DEEPEST):
        raise ValueError(f"is nested more than {DEEPEST} levels deep")
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


#: Levels of lists and objects in what is passed through unread.
DEEPEST = 64
_ANY_OBJECT: dict[str, Any] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
NO_KEY_MESSAGE = "looks like it holds an API key: put it into a Secret and refer to that"

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
    BeforeValidator(lambda v: normalise(harmless(v)) if isinstance(v, dict) else v),
    WithJsonSchema(_ANY_OBJECT),
]
"""Options passed through to a library; kept in normal form, so that equal settings hash equally."""
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
    Rule(f"!self.matches({cel_text(LITERAL_KEY)})", NO_KEY_MESSAGE, no_literal_key),
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
