"""Writing that survives `kill -9` and a power cut: temporary file, fsync, rename, fsync of the folder."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import DiskFull

#: What link(2) says on a file system without hard links.
NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a full disk or a spent quota into an error that names the path and what to do.

    Raises:
        DiskFull: ENOSPC or EDQUOT.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"{path}: {error.strerror}; free some space (or enlarge the volume) and run the same command again"
            ) from error
        raise


@contextmanager
def atomic_file(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A binary file that appears at `path` only when the block ends well, and is then on the disk.

    `durable=False` leaves the last part to the caller: many small files are synced faster together (`sync_all`).
    """
    with disk_errors(path):
        make_folder(path.parent)
        temporary = temporary_name(path)
        try:
            with temporary.open("xb") as stream:
                yield stream
                if durable:
                    stream.flush()
                    os.fsync(stream.fileno())
            temporary.replace(path)
            if durable:
                fsync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """A hidden name beside `path`. Random, not the process id: every container's first process is number 1."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def sync_all() -> None:
    """Makes everything written so far durable, on every file system: one call for many small files."""
    os.sync()


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8, atomically and durably."""
    with atomic_file(path) as stream:
        stream.write(text.encode())


def create_text(path: Path, text: str, scratch: Path) -> bool:
    """Writes `text` to a file that must not be there yet, atomically and durably.

    Args:
        path: the file; of several processes that create it at once, exactly one succeeds.
        text: its content.
        scratch: folder on the same volume for the temporary file.

    Returns:
        False: the file was there already and is unchanged.
    """
    temporary = temporary_name(scratch / path.name)
    with disk_errors(path):
        write_text(temporary, text)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            if path.exists():
                return False
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_folder(path.parent)
    return True


def make_folder(folder: Path) -> None:
    """Makes a folder and its parents, durably; it may be there."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Makes renames and new names in `folder` durable, where the file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
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
