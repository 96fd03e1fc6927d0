"""The manifest: the commit point of an artifact. What it does not list does not exist; what it lists is verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medgr2_api import workspace
from medgr2_api.base import Model, canonical_json, sha256_of
from medgr2_api.stages import StageName
from pydantic import ValidationError

from ..errors import CorruptArtifact
from . import atomic

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
    stage: StageName
    input_hash: str
    code_version: int
    cycle: str
    iteration: int
    attempt: int
    parts: list[Part]
    inputs: dict[str, str]
    """Output digest of each input, by role."""
    parameters: dict[str, Any]
    counters: dict[str, float] = {}
    """Headline figures; also the metrics of the stage's result."""
    promoted: bool | None = None
    usage: dict[str, float] = {}
    packages: dict[str, str] = {}
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
    path = folder / workspace.MANIFEST
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    try:
        manifest = Manifest.model_validate_json(text)
    except (ValidationError, UnicodeDecodeError) as error:
        raise CorruptArtifact(f"{path}: not a manifest ({_first_line(error)}); {_REMEDY}") from error
    if manifest.schema_version != SCHEMA_VERSION:
        raise CorruptArtifact(
            f"{path}: schema version {manifest.schema_version}, this version reads {SCHEMA_VERSION}; {_REMEDY}"
        )
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
    path = folder / part.path
    if not path.is_file():
        raise CorruptArtifact(f"{path}: missing, though {folder / workspace.MANIFEST} lists it; {_REMEDY}")
    size = path.stat().st_size
    if size != part.bytes:
        raise CorruptArtifact(f"{path}: {size} bytes, the manifest says {part.bytes}; {_REMEDY}")
    if atomic.sha256_file(path) != part.sha256:
        raise CorruptArtifact(f"{path}: sha256 differs from the manifest's; {_REMEDY}")
    return path


def commit(folder: Path, manifest: Manifest) -> Manifest:
    """Publishes: after this returns the artifact exists. Returns the manifest with its digest."""
    manifest.output_digest = manifest.digest()
    atomic.write_text(folder / workspace.MANIFEST, canonical_json_pretty(manifest))
    return manifest


def canonical_json_pretty(manifest: Manifest) -> str:
    """The manifest as JSON for people and programs; the order of keys is fixed."""
    import json

    return json.dumps(json.loads(canonical_json(manifest.dump())), indent=1, sort_keys=True) + "\n"


def combined_digest(digests: list[str]) -> str:
    """Digest of a sharded stage: the hash of its shards' digests in order; of one shard, that shard's own."""
    return digests[0] if len(digests) == 1 else sha256_of({"shards": digests})


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


_REMEDY = "remove this folder and run the stage again (`--restart-from`)"
