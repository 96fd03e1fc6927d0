"""Predicates of watch events: which of them call for a reconcile. Most do not: the operator's own status writes, and
counters of a Job. Nothing is lost with those, because each reconcile reads everything again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Seconds that a reconcile waits for further events of the same cycle: stages that start side by side make one status
#: write.
COALESCE_SECONDS = 1.0
_END_CONDITIONS = ("Complete", "Failed")
#: What is true of a Job as the operator creates it: its own creation calls for nothing.
_CREATED = frozenset({"suspended", "drained", "waiting"})


class ChangeFilter:
    """Remembers what is true of each object by its events; what was not true before is a change."""

    def __init__(self) -> None:
        self._facts: dict[str, frozenset[str]] = {}

    def delay_for_cycle(self, kind: str | None, cycle: Mapping[str, Any]) -> float | None:
        """Seconds until a cycle should be reconciled after an event about it; None: nothing has changed.

        The operator alone writes its status, so a new spec and a deletion count.

        Args:
            kind: ADDED, MODIFIED, DELETED; None while everything is listed.
            cycle: the object.
        """
        metadata = cycle["metadata"]
        facts = {str(metadata.get("generation"))} | ({"deleting"} if "deletionTimestamp" in metadata else set())
        return 0.0 if self._has_changed(kind, metadata["uid"], facts, frozenset()) else None

    def delay_for_job(self, kind: str | None, job: Mapping[str, Any]) -> float | None:
        """The same for the cycle of a Job. Its end is urgent, all else is not."""
        metadata, status = job["metadata"], job.get("status") or {}
        facts = {"deleting"} if "deletionTimestamp" in metadata else set()
        if any(c["type"] in _END_CONDITIONS and c["status"] == "True" for c in status.get("conditions") or ()):
            facts.add("ended")
        elif job["spec"].get("suspend"):
            facts.add("suspended")
            if not status.get("active") and not status.get("terminating"):
                facts.add("drained")  # what a queue stopped may have checkpointed for minutes
        elif status.get("ready"):
            facts.add("ready")
        elif status.get("active"):
            facts.add("waiting")
        if not self._has_changed(kind, metadata["uid"], facts, _CREATED):
            return None
        # not while listing: the cycle is listed, too
        return 0.0 if kind == "DELETED" or ("ended" in facts and kind is not None) else COALESCE_SECONDS

    def _has_changed(self, kind: str | None, uid: str, facts: set[str], initial: frozenset[str]) -> bool:
        if kind == "DELETED":
            self._facts.pop(uid, None)
            return True
        before = self._facts.get(uid, initial)
        self._facts[uid] = frozenset(facts) or before
        return not facts <= before
