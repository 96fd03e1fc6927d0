"""An append-only file of JSON objects, one a line, that one process at a time writes and a `kill -9` cannot spoil."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
from io import FileIO
from pathlib import Path
from typing import Any

from ..errors import ConfigError, CorruptArtifact, TemporaryError
from ..store import atomic

#: What flock(2) says on a file system that has no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


class AppendOnlyLog:
    """A file, locked as long as it is open. What is appended is safe from `kill -9`, and after `synced` from a power
    cut; those that wait for `synced` at the same time share one fsync."""

    def __init__(self, path: Path, holder: str) -> None:
        """
        Args:
            path: the file; made when it is not there.
            holder: identity of who opens it, for the message to whoever finds it locked.

        Raises:
            TemporaryError: another process has it open; the message says which.
            ConfigError: the volume has no file locks.
            CorruptArtifact: a line in it is damaged.
        """
        self.path = path
        self._owner_file = path.with_name(f"{path.name}.holder")
        self._torn = False
        self._fsync_lock = asyncio.Lock()
        self._next_fsync: asyncio.Task[None] | None = None
        with atomic.disk_errors(path):
            atomic.make_folder(path.parent)
            self._stream = self._open()
            self._owner_file.write_text(holder)
            text = path.read_bytes()
            complete = text.rfind(b"\n") + 1
            self._stream.truncate(complete)  # the line that was being written
            self._size = complete
            atomic.fsync_folder(path.parent)
        self.entries = _parse(path, text[:complete])
        """What earlier processes appended."""

    def _open(self) -> FileIO:
        while True:
            stream = self.path.open("ab", buffering=0)
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(stream.fileno()).st_ino == self.path.stat().st_ino:
                    return stream
                stream.close()  # its last holder removed it: this one has no name any more
            except FileNotFoundError:
                stream.close()
            except BlockingIOError:
                stream.close()
                raise TemporaryError(
                    f"{self.path}: {self._current_owner()} is at work on the same questions; "
                    "they are not asked, and paid, twice. Run again when it has ended"
                ) from None
            except OSError as error:
                stream.close()
                if error.errno in _NO_LOCKS:
                    raise ConfigError(
                        f"{self.path}: this volume has no file locks ({error.strerror}), so nothing keeps two "
                        "processes from paying for the same questions; mount it with locks"
                    ) from None
                raise

    def _current_owner(self) -> str:
        try:
            return self._owner_file.read_text() or "another process"
        except OSError:
            return "another process"

    def append(self, document: dict[str, Any]) -> None:
        """Adds a line.

        Raises:
            DiskFull: it does not fit; the file is as before.
        """
        line = json.dumps(document).encode() + b"\n"
        with atomic.disk_errors(self.path):
            if self._torn:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._stream.write(line) < len(line):  # a disk that is nearly full takes a part
                self._torn = True  # nothing may follow a torn line
                self._stream.truncate(self._size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += len(line)

    async def synced(self) -> None:
        """Returns when all that was appended before is on the disk."""
        if self._next_fsync is None:
            self._next_fsync = asyncio.create_task(self._fsync())
        await asyncio.shield(self._next_fsync)

    async def _fsync(self) -> None:
        async with self._fsync_lock:
            self._next_fsync = None  # whoever comes from now on has to wait for the next one
            with atomic.disk_errors(self.path):
                await asyncio.to_thread(os.fsync, self._stream.fileno())

    async def close(self) -> None:
        """Puts all on the disk and lets go of the file."""
        try:
            await self.synced()
        finally:
            self._stream.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file that another process may be writing; a line that is not whole yet is left out.

    Raises:
        CorruptArtifact: a line is damaged.
    """
    text = path.read_bytes()
    return _parse(path, text[: text.rfind(b"\n") + 1])


def _parse(path: Path, text: bytes) -> list[dict[str, Any]]:
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            document = json.loads(line)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise CorruptArtifact(
                f"{path}: line {number} is damaged; correct or remove it. It says what was asked and paid"
            )
        entries.append(document)
    return entries
