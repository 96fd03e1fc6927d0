"""The labels of everything we make: how people, selectors and the observer tell attempts apart."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from medgr2_api.cycle import Cycle
from medgr2_api.stage_contract import StageName

from ..plan.types import AttemptKey
from .errors import RenderError
from .metadata import claim_name

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


def of_volume(cycle: Cycle) -> dict[str, str]:
    """Label of a pod that shares a node with all others of its volume; a claim's name may be too long for a label."""
    return {VOLUME: hashlib.sha256(claim_name(cycle).encode()).hexdigest()[:16]}


def attempt_key(labels: Mapping[str, str]) -> AttemptKey | None:
    """Which attempt an object with these labels belongs to; None where they name none."""
    try:
        iteration, attempt = _number(labels[ITERATION]), _number(labels[ATTEMPT])
        key = AttemptKey(iteration, StageName(labels[STAGE]), labels[TOKEN], attempt)
    except (KeyError, ValueError):
        return None
    return key if attempt > 0 else None


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
    """Only as `of_attempt` writes it: two texts must not name one attempt."""
    if re.fullmatch(r"0|[1-9][0-9]{0,8}", text) is None:
        raise ValueError(text)
    return int(text)
