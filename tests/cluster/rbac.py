"""What a ServiceAccount may do, rule by rule, against what the audit log saw it do."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from tests.cluster.audit import Event
from tests.cluster.control_plane import ControlPlane

Document = dict[str, Any]


@dataclass(frozen=True, order=True)
class Grant:
    """One verb on one resource that a binding gives."""

    namespace: str
    """Where; empty: everywhere."""
    group: str
    resource: str
    """With its subresource: `medgr2cycles/status`."""
    verb: str
    name: str = ""
    """Of the only object; empty: all."""

    def covers(self, event: Event) -> bool:
        """Whether it allows this request."""
        resource = f"{event.resource}/{event.subresource}" if event.subresource else event.resource
        return (
            (self.group, self.resource, self.verb) == (event.group, resource, event.verb)
            and self.namespace in ("", event.namespace)
            and self.name in ("", event.name)
        )


def grants(control_plane: ControlPlane, namespace: str, account: str) -> list[Grant]:
    """All that bindings which name the ServiceAccount give it. (What every account has is not in it: discovery.)"""
    return sorted(set(_grants(control_plane, namespace, account)))


def _grants(control_plane: ControlPlane, namespace: str, account: str) -> Iterator[Grant]:
    bindings: list[Document] = json.loads(
        control_plane.kubectl("get", "clusterrolebindings,rolebindings", "-A", "-o", "json")
    )["items"]
    for binding in bindings:
        if not any(
            (subject["kind"], subject["name"], subject.get("namespace")) == ("ServiceAccount", account, namespace)
            for subject in binding.get("subjects", [])
        ):
            continue
        scope, role = binding["metadata"].get("namespace", ""), binding["roleRef"]
        where = ["-n", scope] if role["kind"] == "Role" else []
        document = json.loads(control_plane.kubectl("get", role["kind"], role["name"], *where, "-o", "json"))
        for rule in document["rules"]:
            names = rule.get("resourceNames", [""])
            for group, resource, verb, name in product(rule["apiGroups"], rule["resources"], rule["verbs"], names):
                yield Grant(scope, group, resource, verb, name)


def unused(given: Iterable[Grant], events: Iterable[Event]) -> list[Grant]:
    """Grants that no allowed request needed. A wildcard is never used: no request asks for one."""
    allowed = [event for event in events if event.decision == "allow"]
    return [grant for grant in given if not any(grant.covers(event) for event in allowed)]


def denied(events: Iterable[Event]) -> list[str]:
    """Requests that were refused for want of a right."""
    return [
        f"{event.verb} {event.group}/{event.resource}/{event.subresource} {event.namespace}/{event.name}"
        for event in events
        if event.decision == "forbid"
    ]
