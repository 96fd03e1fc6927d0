"""Which events are worth a look. Most are not: the operator's own status writes, and counters of a Job.

What is left out here is seen by the next look, for each look reads everything again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Seconds that a look waits for further news of the same cycle: stages that start side by side make one status write.
SOON = 1.0
_ENDS = ("Complete", "Failed")
#: How a Job of ours begins; our own creation is no news.
_NEW = frozenset({"suspended", "waiting"})


class News:
    """Remembers what was told of each object. News is what was not true of it before."""

    def __init__(self) -> None:
        self._told: dict[str, frozenset[str]] = {}

    def of_cycle(self, kind: str | None, cycle: Mapping[str, Any]) -> float | None:
        """Seconds until a cycle should be looked at after an event about it; None: nothing new.

        Its status is ours alone, so a new spec and a deletion count.

        Args:
            kind: ADDED, MODIFIED, DELETED; None while everything is listed.
            cycle: the object.
        """
        metadata = cycle["metadata"]
        told = {str(metadata.get("generation"))} | ({"deleting"} if "deletionTimestamp" in metadata else set())
        return 0.0 if self._is_news(kind, metadata["uid"], told, frozenset()) else None

    def of_job(self, kind: str | None, job: Mapping[str, Any]) -> float | None:
        """The same of a Job. Its end is urgent, all else is not."""
        metadata, status = job["metadata"], job.get("status") or {}
        told = {"deleting"} if "deletionTimestamp" in metadata else set()
        if any(c["type"] in _ENDS and c["status"] == "True" for c in status.get("conditions") or ()):
            told.add("ended")
        elif job["spec"].get("suspend"):
            told.add("suspended")
        elif status.get("ready"):
            told.add("ready")
        elif status.get("active"):
            told.add("waiting")
        if not self._is_news(kind, metadata["uid"], told, _NEW):
            return None
        # what is listed can wait: its cycle is on a list, too
        return 0.0 if kind == "DELETED" or ("ended" in told and kind is not None) else SOON

    def _is_news(self, kind: str | None, uid: str, told: set[str], new: frozenset[str]) -> bool:
        if kind == "DELETED":
            self._told.pop(uid, None)
            return True
        before = self._told.get(uid, new)
        self._told[uid] = frozenset(told) or before
        return not told <= before
