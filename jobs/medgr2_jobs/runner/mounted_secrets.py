"""Values of secrets, from mounted files: `<folder>/<name>/<key>`."""

from __future__ import annotations

import os
from pathlib import Path

from medgr2_api.stage_contract import SECRETS_ENV

from ..errors import ConfigError


def read(name: str, key: str) -> str:
    """The value of one key of a secret; never logged.

    Raises:
        ConfigError: it is not there, or empty.
    """
    folder = os.environ.get(SECRETS_ENV, "/var/run/secrets/medgr2.io")
    if {name, key} & {"", ".", ".."} or "/" in name + key:
        raise ConfigError(f"secret {name!r}, key {key!r}: not names of a secret and its key")
    path = Path(folder) / name / key
    try:
        value = path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        value = ""
    if not value:
        raise ConfigError(
            f"secret {name!r} has no key {key!r} (looked for text in {path}); "
            "on a cluster create the Secret, locally pass --secrets-dir"
        )
    return value
