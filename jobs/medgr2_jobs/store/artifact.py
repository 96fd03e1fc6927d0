"""Reading and writing artifacts: `artifacts/<stage>/<inputHash>/`, one manifest each (or one per shard)."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pydantic import ValidationError

from medgr2_api import paths
from medgr2_api.hashing import sha256_of
from medgr2_api.model import EARLIER
from medgr2_api.stage_contract import ArtifactRef, StageRequest
from medgr2_api.stages.definition import StageParameters
from medgr2_api.types import relative_path

from ..errors import CorruptArtifact
from . import atomic, manifest
from .manifest import Manifest, Part
from .rows import StoredRow, TableRow
from .safe_path import inside

if TYPE_CHECKING:
    from .tables import TableWriter

P = TypeVar("P", bound=StageParameters)
R = TypeVar("R", bound=TableRow)
S = TypeVar("S", bound=StoredRow)

_SHARD = re.compile(r"shard-(\d+)")


class ArtifactReader:
    """A published artifact. Every file is verified before it is handed out, once per process."""

    def __init__(self, root: Path, ref: ArtifactRef) -> None:
        """
        Raises:
            ConfigError: the path leads out of the workspace.
            CorruptArtifact: nothing is published there, or it is not what `ref` names.
        """
        self.folder = inside(root, ref.path, f"artifact of stage {ref.stage}")
        self.ref = ref
        single = manifest.load(self.folder)
        self.shards = [(self.folder, single)] if single is not None else self._load_shards()
        if not self.shards:
            raise CorruptArtifact(f"{self.folder}: nothing is published here; run stage {ref.stage} again")
        if ref.output_digest and self.digest != ref.output_digest:
            shards = "" if single is not None else f" ({len(self.shards)} shards are there)"
            raise CorruptArtifact(
                f"{self.folder}: digest {self.digest[:12]} is not the expected {ref.output_digest[:12]}{shards}; "
                f"run stage {ref.stage} again (`--restart-from`)"
            )
        self._verified: set[str] = set()
        self._rows: dict[type[StoredRow], list[Any]] = {}

    def _load_shards(self) -> list[tuple[Path, Manifest]]:
        """Folder and manifest of each published shard, in the order of their numbers."""
        numbered = {
            int(found[1]): path for path in self.folder.glob("shard-*") if (found := _SHARD.fullmatch(path.name))
        }
        loaded = [(path, manifest.load(path)) for _, path in sorted(numbered.items())]
        return [(path, found) for path, found in loaded if found is not None]

    @property
    def rows_of_tables(self) -> dict[str, int]:
        """How many rows each table has, over all shards."""
        rows: Counter[str] = Counter()
        for _, shard in self.shards:
            rows.update({part.name: part.rows for part in shard.parts if part.rows is not None})
        return dict(rows)

    @property
    def manifest(self) -> Manifest:
        """The manifest (of the first shard)."""
        return self.shards[0][1]

    def parameters(self, kind: type[P]) -> P:
        """The parameters of the stage that published it.

        Raises:
            CorruptArtifact: they are not those of that stage in this version.
        """
        try:
            return kind.model_validate(self.manifest.parameters, context=EARLIER)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise CorruptArtifact(
                f"{self.folder}: parameters of another version: {field}: {first['msg']}; "
                f"run stage {self.ref.stage} again (`--restart-from`)"
            ) from error

    @property
    def digest(self) -> str:
        """The artifact's digest."""
        return manifest.combined_digest([shard.output_digest for _, shard in self.shards])

    def has(self, name: str) -> bool:
        """Whether a part of that logical name was published."""
        return any(shard.part(name) for _, shard in self.shards)

    def file(self, name: str) -> Path:
        """Path of a verified part of the (first) shard that has it."""
        for folder, shard in self.shards:
            part = shard.part(name)
            if part is not None:
                return self._verify(folder, part)
        raise CorruptArtifact(f"{self.folder}: has no part {name!r}")

    def folder_of(self, prefix: str) -> Path:
        """Path of a verified folder, such as `model`: all parts below it are checked.

        A library will read the folder, so files that the manifest does not list are an error too.
        """
        folder, found = self.shards[0]
        parts = [part for part in found.parts if part.name.startswith(prefix + "/")]
        if not parts:
            raise CorruptArtifact(f"{self.folder}: has no folder {prefix!r}")
        listed = {self._verify(folder, part) for part in parts}
        path = (folder / parts[0].path).parents[parts[0].name.count("/") - prefix.count("/") - 1]
        unlisted = [found for found in _files(path) if found not in listed]
        if unlisted:
            raise CorruptArtifact(f"{unlisted[0]}: is not in the artifact's manifest; remove it")
        return path

    def digest_of(self, prefix: str) -> str:
        """Digest of a folder, such as `models/policy`, by the names and contents of its files: the same in every
        artifact that holds it."""
        listed = {
            part.name.removeprefix(prefix + "/"): part.sha256
            for part in self.manifest.parts
            if part.name.startswith(prefix + "/")
        }
        return sha256_of(listed)

    def rows(self, kind: type[S]) -> list[S]:
        """The rows of a table, all shards in order. Read once: do not change the list.

        Raises:
            CorruptArtifact: the artifact has no such table, or it is damaged.
        """
        from . import tables

        if kind not in self._rows:
            paths = self._table_paths(kind.TABLE)
            self._rows[kind] = [row for path in paths for row in tables.read(path, kind)]
        return self._rows[kind]

    def batches(self, kind: type[S], where: tuple[str, Collection[str]] | None = None) -> Iterator[list[S]]:
        """The rows of a table, all shards in order, some thousand at a time; none of them is kept.

        Args:
            kind: the table.
            where: a column and the values that it may have: only such rows become objects.

        Raises:
            CorruptArtifact: the artifact has no such table, or it is damaged.
        """
        from . import tables

        for path in self._table_paths(kind.TABLE):
            yield from tables.batches(path, kind, where=where)

    def has_table(self, kind: type[StoredRow]) -> bool:
        """Whether the table was published."""
        return self.has(f"{kind.TABLE}.parquet")

    def _table_paths(self, name: str) -> list[Path]:
        parts = [(folder, shard.part(f"{name}.parquet")) for folder, shard in self.shards]
        paths = [self._verify(folder, part) for folder, part in parts if part is not None]
        if not paths:
            raise CorruptArtifact(f"{self.folder}: has no table {name!r}")
        return paths

    def _verify(self, folder: Path, part: Part) -> Path:
        key = str(folder / part.path)
        if key not in self._verified:
            manifest.verify_part(folder, part)
            self._verified.add(key)
        return Path(key)


class ArtifactInputs(Protocol):
    """Artifacts by role, such as `prepare` or `curate-1`; a stage's context is one."""

    def has_input(self, role: str) -> bool:
        """Whether there is an artifact of that role."""

    def input(self, role: str) -> ArtifactReader:
        """The artifact of that role.

        Raises:
            ConfigError: there is none.
        """


class ArtifactWriter:
    """Where one attempt writes. Nothing is visible to readers until `commit`."""

    def __init__(self, root: Path, request: StageRequest) -> None:
        base = root / paths.artifact(request.stage, request.input_hash)
        self.base = base / paths.shard(request.shard.index) if request.shard.count > 1 else base
        #: Whose attempts these are: tells a cycle's own leftovers from what another cycle is writing just now.
        self._owner = hashlib.sha256((request.cycle.uid or request.cycle.name).encode()).hexdigest()[:8]
        self.attempt = f"a{request.attempt}-{self._owner}"
        self.folder = self.base / self.attempt
        #: Checkpoints of an unfinished run; survive the attempt, removed after the commit.
        self.work = self.base / "work" / (request.cycle.uid or request.cycle.name)
        #: What any cycle's attempt may go on from, whoever made it; removed after the commit. No uid is called so.
        self.shared = self.base / "work" / ".shared"
        self.request = request
        self._rows: dict[str, int] = {}
        self._undigested: set[str] = set()

    def open(self) -> None:
        """Makes the attempt's folder, empty."""
        with atomic.disk_errors(self.folder):
            atomic.remove_tree(self.folder)
            atomic.make_folder(self.folder)
            atomic.make_folder(self.work)

    def path(self, name: str, *, digested: bool = True) -> Path:
        """Where to write the part `name` (its folders are made). `digested=False` keeps it out of outputDigest."""
        path = self.folder / relative_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not digested:
            self._undigested.add(name)
        return path

    def table(self, kind: type[R], rows: Sequence[R]) -> int:
        """Writes a table; returns its number of rows."""
        from . import tables

        name = f"{kind.TABLE}.parquet"
        self._rows[name] = tables.write(self.path(name), kind, rows)
        return self._rows[name]

    @contextlib.contextmanager
    def stream(self, kind: type[R]) -> Iterator[TableWriter[R]]:
        """A table to be written row by row; it counts as written when the block ends well."""
        from . import tables

        name = f"{kind.TABLE}.parquet"
        with tables.writer(self.path(name), kind) as writer:
            yield writer
        self._rows[name] = writer.rows

    def take(self, name: str, source: Path) -> None:
        """Takes a file or folder that was made elsewhere on the volume (hard links where possible)."""
        for path in _files(source):
            target = self.path(f"{name}/{path.relative_to(source)}" if source.is_dir() else name)
            with atomic.disk_errors(target):
                try:
                    os.link(path.resolve(), target)  # resolved: link(2) would link a symlink itself
                except OSError as error:
                    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EEXIST):
                        raise
                    shutil.copyfile(path, target)

    def parts(self) -> list[Part]:
        """The parts written so far."""
        listed = []
        for path in _files(self.folder):
            name = str(path.relative_to(self.folder))
            listed.append(
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
        return listed

    def discard(self) -> None:
        """Removes what this attempt wrote (not its checkpoints)."""
        atomic.remove_tree(self.folder)

    def clean(self, committed: Manifest) -> None:
        """Removes what this cycle's killed attempts left behind, and its checkpoints; call once something is published.

        Newer attempts and other cycles may be writing just now: theirs is left alone.
        """
        listed = {part.path.partition("/")[0] for part in committed.parts}
        for path in self.base.glob(f"a*-{self._owner}"):
            number = path.name.removeprefix("a").partition("-")[0]
            if path.name not in listed and number.isdecimal() and int(number) <= self.request.attempt:
                atomic.remove_tree(path)
        atomic.remove_tree(self.work)
        atomic.remove_tree(self.shared)
        with contextlib.suppress(OSError):  # another cycle's checkpoints are in it
            self.work.parent.rmdir()


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    yield from (file for file in sorted(path.rglob("*")) if file.is_file())
