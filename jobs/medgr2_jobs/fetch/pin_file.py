"""What was fetched, and how it is known again: `inputs/<key>/files/…` beside `fetched.json`, the commit point.

```
inputs/
  <key>/fetched.json, files/…     whole, or not there
  .fetching/<key>/partial/        what an interrupted fetch has so far
  .fetching/<key>/lock            held by the process that fetches
```
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from pydantic_core import from_json

from medgr2_api import paths
from medgr2_api.hashing import sha256_of
from medgr2_api.model import Model
from medgr2_api.types import relative_path

from ..errors import CorruptArtifact
from ..store import atomic

Kind = Literal["dataset", "model"]
FETCHED = "fetched.json"
FILES = "files"
SCHEMA_VERSION = 1
#: What is taken of a model: data, never code and never pickles.
MODEL_SUFFIXES = frozenset({".json", ".safetensors", ".txt", ".jinja", ".model", ".tiktoken"})

_NAME_LENGTH = 64


class PinnedFile(Model):
    """One file."""

    path: str
    """Relative to `files/`."""
    bytes: int
    sha256: str
    etag: str = ""
    """What the store called this content, where it did (S3, the hub)."""


class PinFile(Model):
    """What a URI stood for when it was fetched."""

    schema_version: int = SCHEMA_VERSION
    uri: str
    kind: Kind
    revision: str = ""
    """Commit of the hub's repository."""
    path: str = ""
    """The one file in `files/` that the URI names; empty: it names the folder."""
    files: list[PinnedFile]

    def pin(self) -> dict[str, Any]:
        """What its content is, in the words of `inputs.json`: nothing of where it was fetched from, or when.

        Etags are left out: they differ between stores that hold the same bytes.
        """
        files = [{"path": file.path, "bytes": file.bytes, "sha256": file.sha256} for file in self.files]
        return {
            "uri": self.uri,
            "kind": self.kind,
            "revision": self.revision,
            "bytes": sum(file.bytes for file in self.files),
            "sha256": sha256_of([(file.path, file.sha256) for file in self.files]),
            "files": files,
        }


def key(uri: str, kind: Kind) -> str:
    """Name of the folder: readable, and unique by a hash of the URI and of what it is fetched as."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", uri.partition("://")[2])[:_NAME_LENGTH].strip("-.")
    return f"{readable}-{hashlib.sha256(f'{kind} {uri}'.encode()).hexdigest()[:12]}"


def folder_of(root: Path, uri: str, kind: Kind) -> Path:
    """Where it lies on the volume, once it is fetched."""
    return root / paths.fetched(key(uri, kind))


def scratch_of(folder: Path) -> Path:
    """Where an unfinished fetch keeps what it has, and its lock."""
    return folder.parent / ".fetching" / folder.name


def is_fetched(path: str, kind: Kind) -> bool:
    """Whether a file is fetched: all of a dataset, of a model what may be loaded."""
    if kind == "dataset":
        return True
    hidden = any(part.startswith(".") for part in path.split("/"))
    return not hidden and Path(path).suffix in MODEL_SUFFIXES


def load(folder: Path, uri: str, kind: Kind) -> PinFile | None:
    """What `fetched.json` says; None when nothing was fetched.

    Raises:
        CorruptArtifact: it cannot be read, or is that of another URI.
    """
    path = folder / FETCHED
    try:
        document = from_json(path.read_bytes())  # refuses lone surrogates and endless nesting
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CorruptArtifact(f"{path}: not JSON; {_remedy(folder)}") from error
    version = document.get("schemaVersion") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:  # before anything else: another version may have other fields
        raise CorruptArtifact(f"{path}: schema version {version}, this version reads {SCHEMA_VERSION}")
    try:
        pinned = PinFile.model_validate(document)
    except ValidationError as error:
        raise CorruptArtifact(f"{path}: {str(error).splitlines()[0]}; {_remedy(folder)}") from error
    if (pinned.uri, pinned.kind) != (uri, kind):
        raise CorruptArtifact(f"{path}: is of {pinned.kind} {pinned.uri}, not of {kind} {uri}; {_remedy(folder)}")
    return pinned


def verify(folder: Path, fetched: PinFile, tick: Callable[[int], None]) -> None:
    """Checks that `files/` holds exactly what `fetched.json` lists, byte by byte.

    Args:
        folder: the one that holds both.
        fetched: what is listed.
        tick: told how many bytes were read so far, before each file.

    Raises:
        CorruptArtifact: a file is missing, differs, is not listed, or is a link that leads out of the folder.
    """
    top = folder / FILES
    listed, done = set(), 0
    for file in fetched.files:
        tick(done)
        path = _inside(top, file.path, folder)
        size = path.stat().st_size
        if size != file.bytes:
            raise CorruptArtifact(f"{path}: {size} bytes, {FETCHED} says {file.bytes}; {_remedy(folder)}")
        if atomic.sha256_file(path) != file.sha256:
            raise CorruptArtifact(f"{path}: sha256 differs from the one in {FETCHED}; {_remedy(folder)}")
        listed.add(path)
        done += size
    unlisted = [path for path in _entries(top) if path not in listed]
    if unlisted:
        raise CorruptArtifact(f"{unlisted[0]}: {FETCHED} does not list it; remove this file, or {_remedy(folder)}")


def remove_unlisted(files: Path, listed: set[str]) -> None:
    """Removes what an earlier, interrupted fetch left that is not wanted any more."""
    for path in list(_entries(files)):
        if path.relative_to(files).as_posix() not in listed:
            path.unlink()


def describe(partial: Path, etags: dict[str, str], tick: Callable[[int], None]) -> list[PinnedFile]:
    """Size and sha256 of everything that was fetched, sorted by path.

    Args:
        partial: the folder that holds `files/`.
        etags: by path, where there are any.
        tick: told how many bytes were read so far, before each file.
    """
    top, pinned, done = partial / FILES, [], 0
    for path in sorted(_entries(top)):
        tick(done)
        name, size = path.relative_to(top).as_posix(), path.stat().st_size
        pinned.append(PinnedFile(path=name, bytes=size, sha256=atomic.sha256_file(path), etag=etags.get(name, "")))
        done += size
    return pinned


def commit(partial: Path, folder: Path, fetched: PinFile) -> None:
    """Makes what was fetched appear at `folder`, durably and all at once. Call with its lock held."""
    text = json.dumps(fetched.dump(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    with atomic.disk_errors(partial):
        for leftover in partial.iterdir():
            if leftover.name != FILES:
                atomic.remove_tree(leftover) if leftover.is_dir() else leftover.unlink()
        atomic.write_text(partial / FETCHED, text)
        atomic.sync_all()  # one call: there may be very many small files
        atomic.remove_tree(folder)  # without its fetched.json it is nothing: a copy that was broken off
        partial.rename(folder)
        atomic.fsync_folder(folder.parent)


def _inside(top: Path, name: str, folder: Path) -> Path:
    try:
        path = top / relative_path(name)
    except ValueError as error:
        raise CorruptArtifact(f"{folder / FETCHED}: {error}; {_remedy(folder)}") from None
    if not path.is_file():
        raise CorruptArtifact(f"{path}: missing, though {FETCHED} lists it; {_remedy(folder)}")
    if not path.resolve().is_relative_to(top.resolve()):
        raise CorruptArtifact(f"{path}: leads out of its folder (to {path.resolve()}); {_remedy(folder)}")
    return path


def _entries(top: Path) -> Iterator[Path]:
    """Everything that is no folder: a link to nowhere is an entry too."""
    return (path for path in top.rglob("*") if path.is_symlink() or not path.is_dir())


def _remedy(folder: Path) -> str:
    return f"remove {folder} and run again to fetch it anew (without a network: copy it again from where it is whole)"
