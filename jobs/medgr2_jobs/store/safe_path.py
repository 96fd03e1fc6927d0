"""Nothing that a request names may lead out of the workspace: not by `..`, not by a symlink."""

from __future__ import annotations

from pathlib import Path

from medgr2_api.types import relative_path

from ..errors import ConfigError


def inside(root: Path, path: str, what: str) -> Path:
    """The path below `root`, which must exist for its symlinks to be followed.

    Args:
        root: the workspace.
        path: relative to it.
        what: names the thing in the message.

    Raises:
        ConfigError: it is absolute, has a `..` part, or a symlink leads out of `root`.
    """
    try:
        resolved = root / relative_path(path)
    except ValueError as error:
        raise ConfigError(f"{what}: {error}") from None
    if not resolved.resolve().is_relative_to(root.resolve()):
        raise ConfigError(
            f"{what}: {resolved} leads out of the workspace (to {resolved.resolve()}); copy the files into it"
        )
    return resolved
