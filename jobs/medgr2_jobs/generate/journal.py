"""Finished rows of an unfinished run, one JSON object a line: a `kill -9` costs the answers in flight, no more."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from ..store import atomic

_BATCH = 64  # rows between two fsyncs: what a power cut may cost


class Journal:
    """Append-only. A row is safe from `kill -9` when `append` returns, and from a power cut after `sync`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        """What earlier attempts finished, and this one."""
        with atomic.disk_errors(path):
            atomic.make_folder(path.parent)
            self._stream = path.open("ab+", buffering=0)
            self._stream.seek(0)
            text = self._stream.read()
            whole = text.rfind(b"\n") + 1
            self._stream.truncate(whole)  # the line that was being written
            atomic.fsync_folder(path.parent)
        self.rows = [json.loads(line) for line in text[:whole].splitlines()]
        self._unsynced = 0

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row."""
        with atomic.disk_errors(self.path):
            line = json.dumps(row).encode() + b"\n"
            if self._stream.write(line) < len(line):  # a disk that is nearly full takes a part
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.rows.append(row)
        self._unsynced += 1
        if self._unsynced >= _BATCH:
            self.sync()

    def sync(self) -> None:
        """Puts all rows on the disk."""
        if self._unsynced:
            with atomic.disk_errors(self.path):
                os.fsync(self._stream.fileno())
            self._unsynced = 0

    def close(self) -> None:
        """Puts all rows on the disk and lets go of the file."""
        self.sync()
        self._stream.close()
