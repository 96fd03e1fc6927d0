"""The status of a cycle that cannot be run. JSON in, JSON out: its status may be one that cannot be read, too."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from medgr2_api.status import Condition, Phase

from ..kube.client import Manifest
from ..plan.conditions import SPEC_APPLIED
from ..plan.status_draft import ACTIVE, cut, seconds_between
from .pod_state import time_of

INVALID = "InvalidSpec"
_MESSAGE_LENGTH = 1024
_SUMMARY_LENGTH = 160
#: What is said of it, whatever was before.
_SAID: dict[str, Literal["True", "False", "Unknown"]] = {
    "Progressing": "False",
    "Ready": "False",
    "Reconciling": "False",
    "Stalled": "True",
}


def standing_still(manifest: Manifest, reason: str, message: str, now: datetime) -> Manifest | None:
    """The status of a cycle for which nothing can be done now; None: it says so already. All else in it stays.

    Args:
        manifest: the cycle.
        reason: one CamelCase word.
        message: for people.
        now: the time, with its zone.
    """
    before = dict(manifest.get("status") or {})
    generation = manifest["metadata"].get("generation", 0)
    conditions = {c["type"]: c for c in before.get("conditions") or ()}
    for kind, said in _SAID.items():
        conditions[kind] = _condition(conditions.get(kind, {}), kind, said, (reason, message), generation, now)
    status = {**before, "conditions": list(conditions.values())}
    return status if status != before else None


def rejected(manifest: Manifest, message: str, now: datetime, reason: str = INVALID) -> Manifest | None:
    """The status of a cycle whose spec cannot be run; None: it says so already.

    All conditions are about the spec of now: who waits for it is answered. An end stays one. The clock of
    `activeDeadlineSeconds` stands still once nothing runs any more, for now a person has the word.

    Args:
        manifest: the cycle.
        message: why it cannot be run.
        now: the time, with its zone.
        reason: one CamelCase word.
    """
    stored = dict(manifest.get("status") or {})
    before = standing_still(manifest, reason, message, now) or stored
    generation = manifest["metadata"].get("generation", 0)
    conditions = {c["type"]: {**c, "observedGeneration": generation} for c in before.get("conditions") or ()}
    if applied := conditions.get(SPEC_APPLIED):
        conditions[SPEC_APPLIED] = _condition(applied, SPEC_APPLIED, "Unknown", (reason, message), generation, now)
    ended = before.get("completionTime") is not None
    status = {
        **before,
        "observedGeneration": generation,
        "conditions": list(conditions.values()),
        "phase": before["phase"] if ended else str(Phase.INVALID),
        "summary": cut(f"invalid: {message}", _SUMMARY_LENGTH),
    }
    at_work = any(stage.get("attempt") and stage.get("state") in ACTIVE for stage in before.get("stages") or ())
    if (since := before.get("activeSince")) is not None and not at_work:
        del status["activeSince"]
        status["activeSeconds"] = before.get("activeSeconds", 0.0) + seconds_between(time_of(since), now)
    return status if status != stored else None


def _condition(
    before: Manifest,
    kind: str,
    said: Literal["True", "False", "Unknown"],
    why: tuple[str, str],
    generation: int,
    now: datetime,
) -> Manifest:
    condition = Condition(
        type=kind,
        status=said,
        reason=why[0],
        message=cut(why[1], _MESSAGE_LENGTH),
        observed_generation=generation,
        last_transition_time=now,
    ).dump()
    if before.get("status") == condition["status"]:
        condition["lastTransitionTime"] = before.get("lastTransitionTime", condition["lastTransitionTime"])
    return condition
