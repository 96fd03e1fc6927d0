"""The API server's audit log: every write, and every read by a service account that is not the cluster's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_READS = ["get", "list", "watch"]

#: The first rule that fits decides. `Request` keeps what was sent.
POLICY: dict[str, Any] = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [
        {"level": "None", "users": ["system:apiserver"]},
        {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"], "verbs": _READS},
        {"level": "None", "userGroups": ["system:nodes", "system:masters"], "verbs": _READS},
        {
            "level": "None",
            "users": ["system:kube-controller-manager", "system:kube-scheduler", "system:anonymous"],
            "verbs": _READS,
        },
        {"level": "None", "nonResourceURLs": ["*"]},
        {  # heartbeats, which say nothing
            "level": "None",
            "userGroups": ["system:nodes", "system:masters"],
            "verbs": ["update", "patch"],
            "resources": [{"group": "coordination.k8s.io", "resources": ["leases"]}],
        },
        {"level": "Metadata", "resources": [{"group": "", "resources": ["secrets", "serviceaccounts/token"]}]},
        {"level": "Request", "verbs": ["create", "update", "patch", "delete", "deletecollection"]},
        {"level": "Metadata"},
    ],
}


@dataclass(frozen=True)
class Event:
    """One request that the API server answered."""

    user: str
    verb: str
    group: str
    resource: str
    subresource: str
    namespace: str
    name: str
    code: int
    dry_run: bool
    decision: str
    """Of the authorizer: allow or forbid. (A 403 may also come from admission.)"""
    raw: dict[str, Any]

    @property
    def accepted(self) -> bool:
        """It was carried out: not refused, and not a dry run."""
        return self.code < 300 and not self.dry_run


class AuditLog:
    """Reads the log file, which the API server writes before or shortly after it answers."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def events(self, **fields: Any) -> Iterator[Event]:
        """The events whose fields have these values, oldest first: `events(verb="create", resource="jobs")`."""
        if not self.path.exists():
            return
        words = [value for value in fields.values() if isinstance(value, str)]
        with self.path.open() as lines:
            for line in lines:
                if not line.endswith("\n"):  # still being written
                    return
                if not all(word in line for word in words):  # of another test, whose objects may be too deep to read
                    continue
                event = _event(json.loads(line))
                if all(getattr(event, name) == value for name, value in fields.items()):
                    yield event

    def created(self, resource: str, namespace: str) -> list[str]:
        """Names of the objects that were really created, one entry per creation."""
        events = self.events(verb="create", resource=resource, namespace=namespace, subresource="", accepted=True)
        return [event.name for event in events]


def _event(raw: dict[str, Any]) -> Event:
    ref = raw.get("objectRef", {})
    return Event(
        user=raw["user"].get("username", ""),
        verb=raw["verb"],
        group=ref.get("apiGroup", ""),
        resource=ref.get("resource", ""),
        subresource=ref.get("subresource", ""),
        namespace=ref.get("namespace", ""),
        name=ref.get("name", ""),
        code=raw.get("responseStatus", {}).get("code", 0),
        dry_run="dryRun=" in raw["requestURI"],
        decision=raw.get("annotations", {}).get("authorization.k8s.io/decision", ""),
        raw=raw,
    )
