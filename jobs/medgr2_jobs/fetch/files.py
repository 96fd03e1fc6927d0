"""Copying from elsewhere on this computer: `file:///path`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from medgr2_api.stage_contract import SECRETS_ENV

from ..errors import ConfigError
from ..store import atomic
from . import pin_file
from .request import FetchedSource, FetchRequest, Tick

#: What the system shows there is no data, and may be secret.
_FORBIDDEN = ("/proc", "/sys", "/dev", "/run", "/var/run")


def fetch(request: FetchRequest, partial: Path, tick: Tick) -> FetchedSource:
    """Copies a file or folder; what an interrupted copy has already (same size and time) is kept.

    Raises:
        ConfigError: it is not there, may not be read, or leads elsewhere by a link.
        DiskFull: no space left.
    """
    path_given = Path(unquote(request.uri.removeprefix("file://")))
    top = path_given.resolve()
    _check_allowed(request, top)
    if not top.exists():
        raise ConfigError(f"{request.label}: there is no such file or folder on this computer")
    files = partial / pin_file.FILES
    try:
        selected = dict(_files_to_copy(request, top))
        if not selected:
            raise ConfigError(f"{request.label}: holds nothing that can be used")
        pin_file.remove_unlisted(files, set(selected))
        sizes = {name: path.stat().st_size for name, path in selected.items()}
        done, total = 0, sum(sizes.values())
        for name, path in selected.items():
            tick(done, total)
            _copy(path, files / name)
            done += sizes[name]
    except PermissionError as error:
        raise ConfigError(f"{request.label}: {error.filename} may not be read by this user") from error
    return FetchedSource(path=top.name if top.is_file() else "")


def _check_allowed(request: FetchRequest, top: Path) -> None:
    """Refuses what is no data, and folders that hold such places or the workspace."""
    places = [Path(name) for name in _FORBIDDEN]
    if os.environ.get(SECRETS_ENV):
        places.append(Path(os.environ[SECRETS_ENV]))
    for place in {*places, *(place.resolve() for place in places)}:
        if top.is_relative_to(place) or place.is_relative_to(top):
            raise ConfigError(f"{request.label}: nothing is copied from {place}")
    root = Path(request.root).resolve()
    if top.is_relative_to(root):
        raise ConfigError(f"{request.label}: is in the workspace: write {str(top.relative_to(root))!r}")
    if root.is_relative_to(top):
        raise ConfigError(f"{request.label}: holds the workspace itself; name the folder with the data")


def _files_to_copy(request: FetchRequest, top: Path) -> Iterator[tuple[str, Path]]:
    """Name in `files/` and real path of each file, sorted; links are followed only inside of what is copied."""
    if top.is_file():
        yield top.name, top
        return
    for folder, folders, names in os.walk(top, onerror=_raise):
        folders.sort()
        for name in folders:
            if Path(folder, name).is_symlink():
                raise ConfigError(
                    f"{request.label}: {Path(folder, name)} is a link to a folder; copy what it points to"
                )
        for name in sorted(names):
            path = Path(folder, name)
            relative = path.relative_to(top).as_posix()
            if not pin_file.is_fetched(relative, request.kind):
                continue
            real = path.resolve()
            if not real.is_relative_to(top):
                raise ConfigError(f"{request.label}: {path} is a link that leads out of it (to {real}); copy the file")
            if not real.is_file():
                raise ConfigError(f"{request.label}: {path} is no regular file")
            yield relative, real


def _raise(error: OSError) -> None:
    raise error


def _copy(source: Path, target: Path) -> None:
    """Copies a file with its time, by which an interrupted copy knows it again."""
    status = source.stat()
    if target.is_file() and (target.stat().st_size, target.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns):
        return
    handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)  # what was checked is what is read
    with os.fdopen(handle, "rb") as stream, atomic.atomic_file(target) as copy:
        shutil.copyfileobj(stream, copy, 1 << 20)
        copy.flush()
        os.utime(copy.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
