"""Finished rows of an unfinished run: what was paid for is on the disk before it counts.

The journal belongs to the artifact, not to a cycle: two cycles that ask the same go on from the same rows, one after
the other (`AppendOnlyLog` keeps the second out while the first is at work).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import CorruptArtifact
from ..store.rows import Candidate, CandidateOutcome
from .append_only_log import AppendOnlyLog

NAME = "journal.jsonl"


class Journal:
    """Rows by task. Raises what `AppendOnlyLog` raises."""

    def __init__(self, folder: Path, holder: str) -> None:
        self._log = AppendOnlyLog(folder / NAME, holder)
        rows = [_candidate(document, folder / NAME) for document in self._log.entries]
        self._rows = {_key(row): row for row in rows}
        self._log.entries = []

    def find(self, triplet_id: str, image_sha256: str) -> Candidate | None:
        """The row of a task, if an earlier attempt finished it."""
        return self._rows.get((triplet_id, image_sha256))

    async def add(self, row: Candidate) -> None:
        """Adds a row; it is on the disk when this returns."""
        self._log.append(asdict(row))
        self._rows[_key(row)] = row
        await self._log.synced()

    async def close(self) -> None:
        """Lets go of the file."""
        await self._log.close()


def _key(row: Candidate) -> tuple[str, str]:
    return row.triplet_id, row.image_sha256


def _candidate(document: dict[str, Any], path: Path) -> Candidate:
    options = document.get("options")
    try:
        fields = {**document, "options": None if options is None else tuple(options)}
        return Candidate(**{**fields, "outcome": CandidateOutcome(document.get("outcome", ""))})
    except (TypeError, ValueError) as error:
        name = document.get("triplet_id")
        raise CorruptArtifact(
            f"{path}: triplet {name!r} is no row of table candidates ({error}); let the version that wrote it finish "
            "the stage, or remove the line: its question is then asked, and paid, again"
        ) from None
