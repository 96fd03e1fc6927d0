"""What a fetching process is asked, what it returns, and how it reports progress."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from medgr2_api import model_families
from medgr2_api.model import Model

from ..errors import ConfigError
from .pin_file import Kind

#: The file of a model's folder that says of which family it is.
MODEL_CONFIG = "config.json"

#: Bytes that are there, and bytes in all.
Tick = Callable[[int, int], None]


class FetchRequest(Model):
    """One URI to fetch. Holds secrets: goes through a pipe, never into a log, an argument or the environment."""

    parent: int
    """Process id of the stage; the fetching process ends with it."""
    root: str
    """The workspace."""
    uri: str
    kind: Kind
    what: str
    """Where the URI stands in the spec, for messages."""
    guessed: bool = False
    """It is a model's name that could have been a folder of the workspace."""
    hub_endpoint: str | None = None
    hub_token: str | None = None
    hub_secret: str = ""
    """Which Secret the token is from, for messages."""
    s3_endpoint: str | None = None
    s3_region: str = ""
    s3_access_key: str | None = None
    s3_secret_key: str | None = None
    s3_secret: str = ""
    """Which Secrets the keys are from, for messages."""

    @property
    def label(self) -> str:
        """How messages begin."""
        return f"{self.what}: {self.uri}"


@dataclass
class FetchedSource:
    """What a URI turned out to be."""

    revision: str = ""
    path: str = ""
    """The one file it names; empty: a folder."""
    etags: dict[str, str] = field(default_factory=dict)
    """By path."""


def relative_to(name: str, requested_path: str) -> str | None:
    """The path of `name` relative to what was asked for, which is a file, a folder, or (empty) all.

    Returns:
        None: it is not part of that.
    """
    if not requested_path:
        return name
    if name == requested_path:
        return name.rpartition("/")[2]
    return name.removeprefix(f"{requested_path}/") if name.startswith(f"{requested_path}/") else None


def check_family(request: FetchRequest, config: bytes) -> None:
    """Looks at a model's `config.json`, before its weights are fetched.

    Raises:
        ConfigError: the model is of a family that is not supported, or the file is none.
    """
    try:
        document = json.loads(config)
    except ValueError as error:
        raise ConfigError(f"{request.label}: its {MODEL_CONFIG} is not JSON ({error})") from error
    refused = model_families.refusal(document if isinstance(document, dict) else {})
    if refused is not None:
        raise ConfigError(f"{request.label}: {refused}. Nothing else of it was fetched")
