"""Writing that survives `kill -9` and a power cut: temporary file, fsync, rename, fsync of the folder."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import TemporaryError


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a full disk or a spent quota into an error that names the path and what to do.

    Raises:
        TemporaryError: ENOSPC or EDQUOT.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TemporaryError(
                f"{path}: {error.strerror}; free some space (or enlarge the volume) and run the same command again"
            ) from error
        raise


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears at `path` only when the block ends well, and is then on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        try:
            with temporary.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
            fsync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8, atomically and durably."""
    with atomic_file(path) as stream:
        stream.write(text.encode())


def fsync_folder(folder: Path) -> None:
    """Makes renames and new names in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_tree(folder: Path) -> None:
    """Makes every file below `folder` durable (a library wrote them)."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as stream, disk_errors(path):
                os.fsync(stream.fileno())
    for path in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        fsync_folder(path)


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remove_tree(folder: Path) -> None:
    """Removes a folder if it is there."""
    shutil.rmtree(folder, ignore_errors=True)
