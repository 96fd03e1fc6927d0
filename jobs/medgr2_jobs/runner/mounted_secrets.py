"""Values of secrets, from mounted files: `<folder>/<name>/<key>`."""

from __future__ import annotations

import os
from pathlib import Path

from medgr2_api import secret_value
from medgr2_api.stage_contract import SECRETS_ENV

from ..errors import ConfigError


def read(name: str, key: str) -> str:
    """The value of one key of a secret; from now on it is taken out of whatever leaves this process.

    Raises:
        ConfigError: it is not there, or not one printable line.
    """
    folder = os.environ.get(SECRETS_ENV, "/var/run/secrets/medgr2.io")
    if {name, key} & {"", ".", ".."} or "/" in name + key:
        raise ConfigError(f"secret {name!r}, key {key!r}: not names of a secret and its key")
    path = Path(folder) / name / key
    if not path.is_file():
        raise ConfigError(
            f"secret {name!r} has no key {key!r} (looked for text in {path}); "
            "on a cluster create the Secret, locally pass --secrets-dir"
        )
    return read_file(path, f"secret {name!r}, key {key!r}")


def read_file(path: Path, what: str) -> str:
    """The one secret of a file, as `read`; `what` names it in messages."""
    try:
        return secret_value.read(path.read_bytes(), what)
    except OSError as error:
        raise ConfigError(f"{what} cannot be read from {path}: {error.strerror}") from None
    except secret_value.SecretError as error:
        raise ConfigError(str(error)) from None
