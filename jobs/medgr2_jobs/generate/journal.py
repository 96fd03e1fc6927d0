"""Finished rows of an unfinished run: what was paid for is on the disk before it counts.

The journal belongs to the artifact, not to a cycle: two cycles that ask the same go on from the same rows, one after
the other (`lines.Lines` keeps the second out while the first is at work).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .append_only_log import Lines

NAME = "journal.jsonl"


class Journal:
    """Rows by task. Raises what `Lines` raises."""

    def __init__(self, folder: Path, holder: str) -> None:
        self._lines = Lines(folder / NAME, holder)
        self._rows = {_key(row): row for row in self._lines.found}
        self._lines.found = []

    def find(self, triplet_id: str, image_sha256: str) -> dict[str, Any] | None:
        """The row of a task, if an earlier attempt finished it."""
        return self._rows.get((triplet_id, image_sha256))

    async def add(self, row: dict[str, Any]) -> None:
        """Adds a row; it is on the disk when this returns."""
        self._lines.append(row)
        self._rows[_key(row)] = row
        await self._lines.synced()

    async def close(self) -> None:
        """Lets go of the file."""
        await self._lines.close()


def _key(row: dict[str, Any]) -> tuple[str, str]:
    return row["triplet_id"], row["image_sha256"]
