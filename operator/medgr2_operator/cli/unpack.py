"""A tar archive that comes in chunks → files in their place, moved there once all of them are verified."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, BinaryIO

from medgr2_api import command_line
from medgr2_api.stage_contract import ExitCode
from medgr2_api.types import relative_path

from .errors import CommandError

#: Name in the archive of the file or folder (`medgr2_jobs.store.tar`).
ROOT = "data"
_CHUNK = 1 << 20


class BadArchiveError(Exception):
    """The archive is not what it should be. Nothing of it stays."""


#: What unpacking ends with when it does not succeed; `refusal` says it in words.
UNPACKING = (BadArchiveError, OSError, ValueError, IndexError, KeyError)


def refusal(what: str, error: Exception) -> CommandError:
    """How a command ends when unpacking failed with one of `UNPACKING`."""
    if isinstance(error, BadArchiveError):
        return CommandError(f"{what}: {error}", ExitCode.TEMPORARY)
    if isinstance(error, FileExistsError):
        return CommandError(f"{error}; --force replaces it")
    if isinstance(error, OSError):  # as every command says it: a full disk may be tried again
        text, code = command_line.explain(error)
        return CommandError(f"{what}: {text}", code)
    return CommandError(f"{what}: {error}", ExitCode.ERROR)


def final_place(target: Path, name: str, force: bool) -> Path:
    """As with cp: into a folder that is there under its own name, else under the name given.

    Raises:
        CommandError: its folder does not exist, or it exists and is not to be replaced.
    """
    final = target / name if target.is_dir() else target
    if not final.parent.is_dir():
        raise CommandError(f"{final.parent}: no such folder")
    if final.exists() and not force:
        raise CommandError(f"{final} is there already; --force replaces it")
    return final


def workspace_path(path: str) -> str:
    """A path to copy from, which must stay inside the workspace; empty and `.` are all of it.

    Raises:
        CommandError: it leads elsewhere.
    """
    try:
        return relative_path(path.rstrip("/") or ".")
    except ValueError as error:
        raise CommandError(str(error)) from None


def print_copied(final: Path, summary: dict[str, Any]) -> None:
    """Says what was copied, and on stderr what was left out."""
    print(f"{final}: {summary['files']} files, {summary['bytes']} bytes")
    if summary["left_out_count"]:
        names = ", ".join(summary["left_out"])
        more = " and more" if summary["left_out_count"] > len(summary["left_out"]) else ""
        print(f"left out {summary['left_out_count']} links that lead elsewhere: {names}{more}", file=sys.stderr)


class Unpacker:
    """Unpacks while it is written to, into a hidden folder beside the target; `finish` moves it there."""

    def __init__(self, target: Path) -> None:
        """
        Args:
            target: what the file or folder will be; its parent must exist.
        """
        self.target, self.bytes = target, 0
        self._sha256 = hashlib.sha256()
        self._folder = target.parent / f".{target.name}.{secrets.token_hex(4)}.part"
        self._worker = ThreadPoolExecutor(1)

    def __enter__(self) -> Unpacker:
        self._folder.mkdir()
        reading, writing = os.pipe()
        self._pipe: BinaryIO | None = os.fdopen(writing, "wb", buffering=0)
        self._done = self._worker.submit(_unpack, os.fdopen(reading, "rb"), self._folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end_of_input()
        self._worker.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)

    def write(self, data: bytes) -> None:
        """The next chunk of the archive.

        Raises:
            BadArchiveError: it is none, or a member may not be unpacked.
            OSError: the disk is full, say.
        """
        assert self._pipe is not None
        self._sha256.update(data)
        self.bytes += len(data)
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._pipe.write(rest) :]
        except BrokenPipeError:
            self._done.result()  # raises why reading stopped
            raise

    def end(self, stderr: str, *, replace: bool) -> dict[str, Any]:
        """As `finish`, by the stderr of the archive's writer: its last line is JSON with the sha256.

        Returns:
            that summary.
        """
        summary: dict[str, Any] = json.loads(stderr.strip().splitlines()[-1])
        self.finish(summary["sha256"], replace=replace)
        return summary

    def finish(self, sha256: str, *, replace: bool) -> None:
        """Moves what was unpacked to its place.

        Args:
            sha256: of the whole archive, as its writer saw it.
            replace: what is there already.

        Raises:
            BadArchiveError: some of the archive is missing or was changed on the way.
            FileExistsError: something is there, and it is not to be replaced.
        """
        self._end_of_input()
        self._done.result()
        if self._sha256.hexdigest() != sha256:
            raise BadArchiveError(f"{self.bytes} bytes arrived, and not those that were sent; try again")
        new = self._folder / ROOT
        if not new.exists():
            raise BadArchiveError("the archive is empty")
        if os.path.lexists(self.target):
            if not replace:
                raise FileExistsError(f"{self.target} is there already")
            self.target.rename(self._folder / "replaced")  # goes with the folder
        new.rename(self.target)

    def _end_of_input(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None


def _unpack(stream: BinaryIO, folder: Path) -> None:
    """Regular files and folders only, none outside `folder`: whoever sent it need not be trusted."""
    with stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    _extract(archive, member, folder)
            while stream.read(_CHUNK):  # what fills the last block
                pass
        except tarfile.TarError as error:
            raise BadArchiveError(f"not a whole tar archive: {error}; try again") from error


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    parts = PurePosixPath(member.name).parts
    if not parts or parts[0] != ROOT or ".." in parts or "\0" in member.name or "\\" in member.name:
        raise BadArchiveError(f"the archive has {member.name!r}, which leads elsewhere")
    if not member.isdir() and not member.isreg():
        raise BadArchiveError(f"the archive has {member.name!r}, which is neither a file nor a folder")
    path = folder.joinpath(*parts)
    try:
        if member.isdir():
            path.mkdir()
            return
        content = archive.extractfile(member)
        assert content is not None  # of a regular file
        with path.open("xb") as file:
            shutil.copyfileobj(content, file, _CHUNK)
    except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
        raise BadArchiveError(f"the archive has {member.name!r} twice, or before its folder") from error
