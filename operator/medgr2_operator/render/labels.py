"""Labels and owners of everything that the operator creates: how people, selectors and garbage collection tell objects
and attempts apart."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from medgr2_api.cycle import Cycle
from medgr2_api.scheduling import PodTemplate
from medgr2_api.stages import stage_names

from ..plan.types import AttemptKey
from .render_context import RenderError

CYCLE = "medgr2.io/cycle"
CYCLE_UID = "medgr2.io/cycle-uid"
ITERATION = "medgr2.io/iteration"
STAGE = "medgr2.io/stage"
TOKEN = "medgr2.io/token"
ATTEMPT = "medgr2.io/attempt"
#: Of pods that have to be on one node: which volume they share, also with those of other cycles.
VOLUME = "medgr2.io/volume"

NAME = "app.kubernetes.io/name"
MANAGED_BY = "app.kubernetes.io/managed-by"
COMPONENT = "app.kubernetes.io/component"
MANAGER = "medgr2-operator"

_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


def of_cycle(cycle: Cycle, component: str) -> dict[str, str]:
    """Labels of an object that belongs to a cycle."""
    return {
        NAME: "medgr2",
        MANAGED_BY: MANAGER,
        COMPONENT: component,
        CYCLE: cycle.metadata.name,
        CYCLE_UID: cycle.metadata.uid,
    }


def of_attempt(cycle: Cycle, key: AttemptKey) -> dict[str, str]:
    """Labels of an attempt's Job and pods. No token is an empty value, which Kubernetes allows."""
    return {
        **of_cycle(cycle, "stage"),
        ITERATION: str(key.iteration),
        STAGE: str(key.name),
        TOKEN: key.token,
        ATTEMPT: str(key.attempt),
    }


def of_user(template: PodTemplate) -> dict[str, str]:
    """Labels of the pods that the user adds.

    Raises:
        RenderError: one of them is the operator's.
    """
    for key in template.labels:
        if key.startswith("medgr2.io/") or key in (NAME, MANAGED_BY, COMPONENT):
            raise RenderError(f"spec.template.labels.{key}", "is the operator's to set: use another key")
    return template.labels


def attempt_key(labels: Mapping[str, str]) -> AttemptKey | None:
    """Which attempt an object with these labels belongs to; None where they name none."""
    try:
        iteration, attempt = _number(labels[ITERATION]), _number(labels[ATTEMPT])
        key = AttemptKey(iteration, labels[STAGE], labels[TOKEN], attempt)
    except (KeyError, ValueError):
        return None
    return key if attempt > 0 and key.name in stage_names() else None


def owner_reference(cycle: Cycle) -> dict[str, Any]:
    """Deleting the cycle deletes the object.

    Where the API server checks it (OpenShift), `blockOwnerDeletion` needs the right to update the cycle's finalizers.
    """
    return {
        "apiVersion": cycle.api_version,
        "kind": cycle.kind,
        "name": cycle.metadata.name,
        "uid": cycle.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def owned(cycle: Cycle, name: str, labels: dict[str, str]) -> dict[str, Any]:
    """Metadata of an object that goes with the cycle."""
    return {
        "name": name,
        "namespace": cycle.metadata.namespace,
        "labels": labels,
        "ownerReferences": [owner_reference(cycle)],
    }


def value(path: str, text: str) -> str:
    """A text of the spec as a label's value.

    Raises:
        RenderError: it cannot be one.
    """
    if _VALUE.fullmatch(text) is None:
        raise RenderError(
            path, f"{text!r} becomes a label: at most 63 letters, digits, '-', '_' and '.', both ends a letter or digit"
        )
    return text


def _number(text: str) -> int:
    """Only in the form that `of_attempt` writes: two texts must not name one attempt."""
    if re.fullmatch(r"0|[1-9][0-9]{0,8}", text) is None:
        raise ValueError(text)
    return int(text)
