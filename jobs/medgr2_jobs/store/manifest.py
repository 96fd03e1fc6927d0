"""The manifest: the commit point of an artifact. What it does not list does not exist; what it lists is verified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_core import from_json

from medgr2_api import paths
from medgr2_api.hashing import combined_digest, sha256_of
from medgr2_api.model import Model
from medgr2_api.types import Figures, relative_path

from ..errors import CorruptArtifact
from . import atomic

__all__ = ["Manifest", "Part", "combined_digest", "commit", "load", "verify", "verify_part"]

SCHEMA_VERSION = 1


class Part(Model):
    """One file of an artifact."""

    name: str
    """Logical name, such as `candidates.parquet` or `model/model.safetensors`."""
    path: str
    """Where it lies, relative to the artifact's folder."""
    bytes: int
    sha256: str
    rows: int | None = None
    digested: bool = True
    """Whether it counts in outputDigest: logs, times and environment-dependent files do not."""


class Manifest(Model):
    """What an artifact is made of, from what, and by what."""

    schema_version: int = SCHEMA_VERSION
    stage: str
    input_hash: str
    code_version: int
    cycle: str
    iteration: int
    attempt: int
    parts: list[Part]
    inputs: dict[str, str]
    """Output digest of each input, by role."""
    parameters: dict[str, Any]
    counters: Figures = Field(default_factory=dict)
    """Headline figures; also the metrics of the stage's result."""
    promoted: bool | None = None
    message: str = ""
    """What the stage decided and why, for people; also the message of its result."""
    usage: Figures = Field(default_factory=dict)
    packages: dict[str, str] = Field(default_factory=dict)
    """Versions of the libraries that made it."""
    output_digest: str = ""

    def digest(self) -> str:
        """sha256 over names and hashes of the digested parts, and whether the model was promoted."""
        parts = sorted((part.name, part.sha256) for part in self.parts if part.digested)
        return sha256_of({"parts": parts, "promoted": self.promoted})

    def part(self, name: str) -> Part | None:
        """The part of that logical name."""
        return next((part for part in self.parts if part.name == name), None)


def load(folder: Path) -> Manifest | None:
    """The manifest in `folder`; None when nothing was published there.

    Raises:
        CorruptArtifact: it is there but unreadable, or its digest is not that of its parts.
    """
    path = folder / paths.MANIFEST
    try:
        document = from_json(path.read_bytes())  # refuses lone surrogates and endless nesting
    except FileNotFoundError:
        return None
    except ValueError as error:  # not JSON, not UTF-8
        raise CorruptArtifact(f"{path}: not a manifest ({_first_line(error)}); {_REMEDY}") from error
    version = document.get("schemaVersion") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:  # before anything else: another version may have other fields
        raise CorruptArtifact(f"{path}: schema version {version}, this version reads {SCHEMA_VERSION}; {_REMEDY}")
    try:
        manifest = Manifest.model_validate(document)
    except ValidationError as error:
        raise CorruptArtifact(f"{path}: not a manifest ({_first_line(error)}); {_REMEDY}") from error
    if manifest.output_digest != manifest.digest():
        raise CorruptArtifact(f"{path}: outputDigest does not match its parts; {_REMEDY}")
    return manifest


def verify(folder: Path, manifest: Manifest) -> None:
    """Checks size and sha256 of every part.

    Raises:
        CorruptArtifact: a part is missing or differs.
    """
    for part in manifest.parts:
        verify_part(folder, part)


def verify_part(folder: Path, part: Part) -> Path:
    """Checks one part and returns its path. Raises CorruptArtifact."""
    try:
        path = folder / relative_path(part.path)
    except ValueError as error:
        raise CorruptArtifact(f"{folder / paths.MANIFEST}: {error}; {_REMEDY}") from None
    if not path.is_file():
        raise CorruptArtifact(f"{path}: missing, though {folder / paths.MANIFEST} lists it; {_REMEDY}")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CorruptArtifact(f"{path}: leads out of the artifact (to {path.resolve()}); {_REMEDY}")
    size = path.stat().st_size
    if size != part.bytes:
        raise CorruptArtifact(f"{path}: {size} bytes, the manifest says {part.bytes}; {_REMEDY}")
    if atomic.sha256_file(path) != part.sha256:
        raise CorruptArtifact(f"{path}: sha256 differs from the manifest's; {_REMEDY}")
    return path


def commit(folder: Path, manifest: Manifest, scratch: Path) -> Manifest:
    """Publishes: after this returns the artifact exists.

    The first to publish wins: two cycles of a workspace may make the same artifact at the same time, and whoever has
    read it must find the same again.

    Args:
        folder: the artifact's.
        manifest: what to publish; gets its digest.
        scratch: folder on the same volume for a temporary file.

    Returns:
        The manifest that stands: the given one, or that of whoever was first.

    Raises:
        CorruptArtifact: somebody else published at the same time, and it is not readable.
    """
    manifest.output_digest = manifest.digest()
    text = json.dumps(manifest.dump(), indent=1, sort_keys=True, allow_nan=False) + "\n"
    if atomic.create_text(folder / paths.MANIFEST, text, scratch):
        return manifest
    committed = load(folder)
    assert committed is not None  # nothing removes a manifest
    return committed


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


_REMEDY = "remove this folder and run the stage again (`--restart-from`)"
