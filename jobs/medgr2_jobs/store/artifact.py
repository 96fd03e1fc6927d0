"""Reading and writing artifacts: `artifacts/<stage>/<inputHash>/`, one manifest each (or one per shard)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgr2_api import workspace
from medgr2_api.stages import ArtifactRef, StageRequest

from ..errors import CorruptArtifact
from . import atomic, manifest
from .manifest import Manifest, Part

if TYPE_CHECKING:
    import pyarrow as pa


class ArtifactReader:
    """A published artifact. Every file is verified before it is handed out, once per process."""

    def __init__(self, root: Path, ref: ArtifactRef) -> None:
        """
        Raises:
            CorruptArtifact: nothing is published there, or it is not what `ref` names.
        """
        self.folder = root / ref.path
        self.ref = ref
        single = manifest.load(self.folder)
        if single is not None:
            self.shards = [(self.folder, single)]
        else:
            folders = sorted(self.folder.glob("shard-*"))
            self.shards = [(folder, found) for folder in folders if (found := manifest.load(folder))]
        if not self.shards:
            raise CorruptArtifact(f"{self.folder}: nothing is published here; run stage {ref.stage} again")
        digest = manifest.combined_digest([found.output_digest for _, found in self.shards])
        if ref.output_digest and digest != ref.output_digest:
            raise CorruptArtifact(f"{self.folder}: digest {digest[:12]} is not the expected {ref.output_digest[:12]}")
        self._verified: set[str] = set()

    @property
    def manifest(self) -> Manifest:
        """The manifest (of the first shard)."""
        return self.shards[0][1]

    @property
    def digest(self) -> str:
        """The artifact's digest."""
        return manifest.combined_digest([found.output_digest for _, found in self.shards])

    def has(self, name: str) -> bool:
        """Whether a part of that logical name was published."""
        return any(found.part(name) for _, found in self.shards)

    def file(self, name: str) -> Path:
        """Path of a verified part of the (first) shard that has it."""
        for folder, found in self.shards:
            part = found.part(name)
            if part is not None:
                return self._verify(folder, part)
        raise CorruptArtifact(f"{self.folder}: has no part {name!r}")

    def folder_of(self, prefix: str) -> Path:
        """Path of a verified folder, such as `model`: all parts below it are checked."""
        folder, found = self.shards[0]
        parts = [part for part in found.parts if part.name.startswith(prefix + "/")]
        if not parts:
            raise CorruptArtifact(f"{self.folder}: has no folder {prefix!r}")
        for part in parts:
            self._verify(folder, part)
        path = folder / parts[0].path
        return path.parents[parts[0].name.count("/") - prefix.count("/") - 1]

    def table(self, name: str) -> pa.Table:
        """The parquet table `name` (without suffix), all shards in order; its schema version is checked."""
        import pyarrow as pa

        from . import tables

        paths = [
            self._verify(folder, part)
            for folder, found in self.shards
            if (part := found.part(f"{name}.parquet")) is not None
        ]
        if not paths:
            raise CorruptArtifact(f"{self.folder}: has no table {name!r}")
        return pa.concat_tables([tables.read(path, name) for path in paths])

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The table as a list of dicts."""
        rows: list[dict[str, Any]] = self.table(name).to_pylist()
        return rows

    def _verify(self, folder: Path, part: Part) -> Path:
        key = str(folder / part.path)
        if key not in self._verified:
            manifest.verify_part(folder, part)
            self._verified.add(key)
        return Path(key)


class ArtifactWriter:
    """Where one attempt writes. Nothing is visible to readers until `commit`."""

    def __init__(self, root: Path, request: StageRequest) -> None:
        base = root / workspace.artifact(request.stage, request.input_hash)
        self.base = base / workspace.shard(request.shard.index) if request.shard.count > 1 else base
        self.attempt = f"a{request.attempt}-{request.cycle.uid[:8] or request.cycle.name}"
        self.folder = self.base / self.attempt
        #: Checkpoints of an unfinished run; survive the attempt, removed after the commit.
        self.work = self.base / "work" / (request.cycle.uid or request.cycle.name)
        self.request = request
        self._rows: dict[str, int] = {}
        self._undigested: set[str] = set()

    def open(self) -> None:
        """Makes the attempt's folder, empty."""
        with atomic.disk_errors(self.folder):
            atomic.remove_tree(self.folder)
            self.folder.mkdir(parents=True)
            self.work.mkdir(parents=True, exist_ok=True)

    def path(self, name: str, *, digested: bool = True) -> Path:
        """Where to write the part `name` (its folders are made). `digested=False` keeps it out of outputDigest."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not digested:
            self._undigested.add(name)
        return path

    def table(self, name: str, rows: list[dict[str, Any]] | pa.Table) -> int:
        """Writes the parquet table `name`; returns its number of rows."""
        from . import tables

        count = tables.write(self.path(f"{name}.parquet"), name, rows)
        self._rows[f"{name}.parquet"] = count
        return count

    def take(self, name: str, source: Path) -> None:
        """Takes a file or folder that was made elsewhere on the volume (hard links where possible)."""
        for path in _files(source):
            relative = path.relative_to(source) if source.is_dir() else Path()
            target = self.path(str(Path(name) / relative) if source.is_dir() else name)
            try:
                os.link(path, target)
            except OSError:
                with atomic.disk_errors(target):
                    shutil.copyfile(path, target)

    def parts(self) -> list[Part]:
        """The parts written so far."""
        found = []
        for path in _files(self.folder):
            name = str(path.relative_to(self.folder))
            found.append(
                Part(
                    name=name,
                    path=f"{self.attempt}/{name}",
                    bytes=path.stat().st_size,
                    sha256=atomic.sha256_file(path),
                    rows=self._rows.get(name),
                    digested=name not in self._undigested
                    and not any(name.startswith(f"{folder}/") for folder in self._undigested),
                )
            )
        return found

    def discard(self) -> None:
        """Removes what this attempt wrote (not its checkpoints)."""
        atomic.remove_tree(self.folder)


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    yield from (found for found in sorted(path.rglob("*")) if found.is_file())
