"""Hands out a part of the workspace: `python -m medgr2_jobs.store.tar PATH` writes a tar archive to stdout.

What was asked for is called `data` in the archive, which holds regular files and folders only. The last line of stderr
is JSON with the archive's sha256 and size, so that the other end of a connection knows whether it has all of it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

from medgr2_api import command_line, paths
from medgr2_api.stage_contract import WORKSPACE_ENV, ExitCode

from ..errors import ConfigError, StageError
from .safe_path import inside

#: Name in the archive of what was asked for.
ROOT = "data"
_NAMED = 20  # of what was left out


class PathNotFound(StageError):
    """There is no such file or folder (exit 2)."""

    exit_code = ExitCode.USAGE


@dataclass
class ExportSummary:
    """What the archive holds."""

    sha256: str = ""
    bytes: int = 0
    files: int = 0
    left_out: list[str] = field(default_factory=list)
    """The first links that lead elsewhere; they are not followed."""
    left_out_count: int = 0


class CountingWriter:
    """A stream to write to, which keeps the checksum of what went through."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.sha256 = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.bytes += len(data)
        self._stream.write(data)
        return len(data)


def export(root: Path, path: str, stream: BinaryIO) -> ExportSummary:
    """Writes a file or folder as a tar archive.

    Links on the way to it are followed (`cycles/<cycle>/report` is one), and so are links to files below it, as long as
    they stay inside it. Others are left out: a cycle's folder names all of its models by links.

    Args:
        root: the workspace.
        path: relative to it.
        stream: where to write.

    Raises:
        ConfigError: the path leads out of the workspace, or to what is for its owner alone.
        NotThere: nothing is there.
    """
    source, private = inside(root, path, "path").resolve(), (root / paths.PRIVATE).resolve()
    if source.is_relative_to(private):
        raise ConfigError(f"{path}: is for the owner of the volume alone: what pseudonyms stand for is not handed out")
    if not source.is_file() and not source.is_dir():
        raise PathNotFound(f"{path}: no such file or folder; {_beside(root, path)}")
    counted, exported = CountingWriter(stream), ExportSummary()
    with tarfile.open(fileobj=counted, mode="w|", format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
        for item, name in _walk(source, private, exported):
            _add(archive, item, name, exported)
    stream.flush()
    exported.sha256, exported.bytes = counted.sha256.hexdigest(), counted.bytes
    return exported


def _walk(top: Path, private: Path, exported: ExportSummary) -> Iterator[tuple[Path, str]]:
    """What goes into the archive, with its name there; a folder before what is in it. `private` is passed over."""
    yield top, ROOT
    if top.is_file():
        return
    for folder, folders, files in os.walk(top):
        here = Path(folder)
        folders[:] = [name for name in folders if here / name != private]
        for name in sorted(folders + files):
            item = here / name
            relative = f"{ROOT}/{item.relative_to(top)}"
            real = item.resolve()
            plain = real.is_file() or (item.is_dir() and not item.is_symlink())
            if plain and not real.is_relative_to(private) and real.is_relative_to(top):
                yield item, relative
            else:
                exported.left_out_count += 1
                exported.left_out = [*exported.left_out, relative.removeprefix(f"{ROOT}/")][:_NAMED]
        folders.sort()


def _add(archive: tarfile.TarFile, item: Path, name: str, exported: ExportSummary) -> None:
    member = tarfile.TarInfo(name)
    if item.is_dir():
        member.type = tarfile.DIRTYPE
        archive.addfile(member)
        return
    with item.open("rb") as stream:
        member.size = os.fstat(stream.fileno()).st_size  # of a log that grows: as much as there is now
        archive.addfile(member, stream)
    exported.files += 1


def _beside(root: Path, path: str) -> str:
    """What there is instead, in the nearest folder that exists."""
    folder = root / path
    while not folder.is_dir():
        folder = folder.parent
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())[:_NAMED]
    where = "the workspace" if folder == root else str(folder.relative_to(root))
    return f"{where} has {', '.join(names) or 'nothing'}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="medgr2 cp", description="A part of the workspace as a tar archive.")
    parser.add_argument("path")
    parser.add_argument("--workspace", type=Path, default=Path(os.environ.get(WORKSPACE_ENV, "/workspace")))
    options = parser.parse_args(arguments)
    try:
        if not options.workspace.is_dir():
            raise ConfigError(f"{options.workspace}: no such folder")
        exported = export(options.workspace, options.path, sys.stdout.buffer)
    except StageError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)
    except OSError as error:  # it changed while it was read
        print(f"{error}; try again", file=sys.stderr)
        return int(ExitCode.TEMPORARY)
    print(json.dumps(asdict(exported)), file=sys.stderr)
    return int(ExitCode.OK)


if __name__ == "__main__":
    command_line.end(main)
