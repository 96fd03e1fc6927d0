"""What a spec points to outside of itself: data and models by URI, values of Secrets."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from .cel_rules import Rule
from .model import Model
from .types import cel_text, relative_path

#: `hf://[datasets/]org/name[@revision][/path]`, `s3://bucket[/key]`, `file:///path` (RE2 syntax, which CEL reads too).
_REPOSITORY = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REMOTE = (
    rf"^(hf://(datasets/)?{_REPOSITORY}/{_REPOSITORY}(@[A-Za-z0-9._%-]+)?(/[^?#]*)?"
    r"|s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^?#]*)?"
    r"|file:///[^?#]+)$"
)
_BUILTIN = r"^builtin://[a-z0-9.-]+([?][A-Za-z0-9_=&.-]*)?$"
_UP = r"(^|/)\.\.(/|$)"
_UNSAFE = r"^[/~]|\\|\x00"
_MESSAGE = (
    "must be a path relative to the workspace, or hf://org/name@revision, s3://bucket/key or file:///path; "
    "without '..' and backslashes"
)
_ESCAPED = re.compile(r"%([0-9A-Fa-f]{2})")  # a revision may be refs%2Fpr%2F1
_HUB_ID = re.compile(rf"{_REPOSITORY}/{_REPOSITORY}")
_HF = re.compile(rf"hf://(datasets/)?({_REPOSITORY}/{_REPOSITORY})(?:@([^/]+))?(?:/(.*))?")


def is_remote(uri: str) -> bool:
    """Whether prepare has to fetch it; otherwise it is a path on the volume."""
    return uri.startswith(("hf://", "s3://", "file://"))


def hub_parts(uri: str) -> tuple[str, str, str]:
    """Repository, revision (empty: the default branch) and path inside of an `hf://` URI.

    Raises:
        ValueError: not an `hf://` URI.
    """
    found = _HF.fullmatch(uri)
    if found is None:
        raise ValueError(f"{uri!r}: not of the form hf://org/name@revision")
    revision = _ESCAPED.sub(lambda hexadecimal: chr(int(hexadecimal[1], 16)), found[3] or "")
    return found[2], revision, (found[4] or "").strip("/")


def looks_like_hub_id(name: str) -> bool:
    """Whether a model's name could be one of the hub's (`org/name`), should no such folder be on the volume."""
    return _HUB_ID.fullmatch(name) is not None


def _uri(text: str) -> str:
    remote = "://" in text
    if not remote:
        return relative_path(text)
    if re.search(_REMOTE, text) is None or re.search(_UP, text) or "\\" in text or "\0" in text:
        raise ValueError(_MESSAGE)
    return text


def _model(text: str) -> str:
    return text if re.search(_BUILTIN, text) else _uri(text)


def _cel(text: str) -> str:
    """The same rule in CEL, over the expression `self`."""
    return (
        f"self.contains('://') ? ({text}) && !self.matches({cel_text(_UP)}) && !self.matches({cel_text(_UNSAFE)})"
        f" : !self.matches({cel_text(_UNSAFE + '|' + _UP)})"
    )


URI = Annotated[
    str,
    Field(max_length=1024),
    AfterValidator(_uri),
    Rule(_cel(f"self.matches({cel_text(_REMOTE)})"), _MESSAGE),
]
"""Where data lies: a path on the volume, or what prepare fetches from elsewhere and pins."""
ModelURI = Annotated[
    str,
    Field(min_length=1, max_length=512),
    AfterValidator(_model),
    Rule(_cel(f"self.matches({cel_text(_REMOTE)}) || self.matches({cel_text(_BUILTIN)})"), _MESSAGE),
]
"""As `URI`; also an id of the Hugging Face hub (`org/name`, where no such folder is on the volume), and `builtin://`."""


class SecretKeyRef(Model):
    """One key of a Secret in the cycle's namespace (locally: a file `<secrets-dir>/<name>/<key>`)."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Name of the Secret, in the cycle's namespace."""
    key: Annotated[str, Field(min_length=1, max_length=253)]
    """Key of the Secret whose value is used."""
