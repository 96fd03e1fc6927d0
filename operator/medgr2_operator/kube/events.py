"""Events of a cycle: one object per (reason, message), whose count is raised when it happens again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from datetime import UTC, datetime

from medgr2_api.redaction import redact

from ..plan.types import Event
from .client import EVENTS, Client, ConflictError, Manifest, NotFoundError

COMPONENT = "medgr2-operator"
_MESSAGE_LENGTH = 1024  # what the API server accepts
_REMEMBERED = 4096


class EventRecorder:
    """Writes events; only after the status that they report is stored."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._counts: OrderedDict[str, int] = OrderedDict()

    async def record(self, cycle: Manifest, event: Event) -> None:
        """Writes one event about a cycle.

        Args:
            cycle: the object, with its uid.
            event: what happened.
        """
        metadata = cycle["metadata"]
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        name = event_name(metadata["name"], metadata["uid"], event)
        namespace = metadata["namespace"]
        if name in self._counts and await self._again(name, namespace, stamp):
            return
        manifest: Manifest = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": {
                "apiVersion": cycle["apiVersion"],
                "kind": cycle["kind"],
                "name": metadata["name"],
                "namespace": namespace,
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
            },
            "type": event.type,
            "reason": event.reason,
            "message": redact(event.message)[:_MESSAGE_LENGTH],
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": 1,
        }
        try:
            await self._client.create(EVENTS, manifest)
            self._remember(name, 1)
        except ConflictError:  # written before a restart of the operator
            existing = await self._client.get(EVENTS, name, namespace)
            self._remember(name, int(existing.get("count") or 1))
            await self._again(name, namespace, stamp)

    async def _again(self, name: str, namespace: str, stamp: str) -> bool:
        """Raises the count; False when the event has expired."""
        count = self._counts[name] + 1
        try:
            await self._client.patch(EVENTS, name, namespace, {"count": count, "lastTimestamp": stamp})
        except NotFoundError:
            del self._counts[name]
            return False
        self._remember(name, count)
        return True

    def _remember(self, name: str, count: int) -> None:
        self._counts[name] = count
        self._counts.move_to_end(name)
        if len(self._counts) > _REMEMBERED:
            self._counts.popitem(last=False)


def event_name(cycle: str, uid: str, event: Event) -> str:
    """`<cycle>.<16 hex>`: the same for the same event of the same object."""
    text = "/".join((uid, event.type, event.reason, event.message))
    return f"{cycle}.{hashlib.sha256(text.encode()).hexdigest()[:16]}"
