"""Answers of an unfinished run: what was paid for is on the disk before it counts, and its settlement with it.

The journal belongs to the artifact, not to a cycle: two cycles that ask the same go on from the same rows, one after
the other (`AppendOnlyLog` keeps the second out while the first is at work). A line is a row of table `candidates`, or
an answer that is to be sent back (`PaidAnswer`). With it stands what the answer came to, and whose ledger it settles
(`settles`): one line, one fsync, so that no kill leaves an answer that is paid and not there. The ledger itself is
settled afterwards, or when it is opened next (`SpendLedger.recover`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import CorruptArtifact
from ..store.rows.candidates import Candidate, CandidateOutcome
from .append_only_log import AppendOnlyLog
from .spend_ledger import Charge

NAME = "journal.jsonl"
_SETTLES = "settles"
_ANSWER = "answer"


@dataclass(frozen=True)
class PaidAnswer:
    """An answer that does not fit and may be corrected, and what its question took until then."""

    text: str
    attempts: int
    input_tokens: int | None
    output_tokens: int | None
    thinking_tokens: int | None
    usd: float | None


class Journal:
    """Rows and answers by task. Raises what `AppendOnlyLog` raises."""

    def __init__(self, folder: Path, holder: str) -> None:
        self._log = AppendOnlyLog(folder / NAME, holder)
        self._rows: dict[tuple[str, str], Candidate] = {}
        self._answers: dict[tuple[str, str], PaidAnswer] = {}
        self._charges: dict[str, dict[int, float]] = {}
        for document in self._log.entries:
            self._take(document, folder / NAME)
        self._log.entries = []

    def find(self, triplet_id: str, image_sha256: str) -> Candidate | None:
        """The row of a task, if an earlier attempt finished it."""
        return self._rows.get((triplet_id, image_sha256))

    def answer(self, triplet_id: str, image_sha256: str) -> PaidAnswer | None:
        """The answer to a task that an earlier attempt got and could not send back any more."""
        return self._answers.get((triplet_id, image_sha256))

    def charges(self, cycle_uid: str) -> dict[int, float]:
        """What this cycle has paid for the answers, by the reservation's number."""
        return self._charges.get(cycle_uid, {})

    async def add(self, row: Candidate, cycle_uid: str, charge: Charge | None) -> None:
        """Adds a row, and what its last answer came to; both are on the disk when this returns."""
        self._log.append({**asdict(row), **_settles(cycle_uid, charge)})
        self._rows[row.triplet_id, row.image_sha256] = row
        await self._log.synced()

    async def add_answer(
        self, triplet_id: str, image_sha256: str, answer: PaidAnswer, cycle_uid: str, charge: Charge | None
    ) -> None:
        """Adds an answer that is to be sent back, and what it came to; both are on the disk when this returns."""
        key = {"triplet_id": triplet_id, "image_sha256": image_sha256}
        self._log.append({**key, _ANSWER: asdict(answer), **_settles(cycle_uid, charge)})
        await self._log.synced()

    async def close(self) -> None:
        """Lets go of the file."""
        await self._log.close()

    def _take(self, document: dict[str, Any], path: Path) -> None:
        try:
            settles = document.pop(_SETTLES, None)
            if settles is not None:
                self._charges.setdefault(settles["cycle"], {})[settles["n"]] = settles["paid"]
            key = (document["triplet_id"], document["image_sha256"])
            if _ANSWER in document:
                self._answers[key] = PaidAnswer(**document[_ANSWER])
            else:
                self._rows[key] = _candidate(document)
        except (TypeError, ValueError, KeyError) as error:
            name = document.get("triplet_id")
            raise CorruptArtifact(
                f"{path}: triplet {name!r} is no row of table candidates ({error}); let the version that wrote it "
                "finish the stage, or remove the line: its question is then asked, and paid, again"
            ) from None


def _settles(cycle_uid: str, charge: Charge | None) -> dict[str, Any]:
    if charge is None:
        return {}
    return {_SETTLES: {"cycle": cycle_uid, "n": charge.number, "paid": charge.usd}}


def _candidate(document: dict[str, Any]) -> Candidate:
    options = document.get("options")
    fields = {**document, "options": None if options is None else tuple(options)}
    return Candidate(**{**fields, "outcome": CandidateOutcome(document.get("outcome", ""))})
