"""What stages wait for: noted in their records, and how long of it counts."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from medgr2_api.cycle import Cycle
from medgr2_api.status import AttemptState, StageStatus
from medgr2_api.waiting import STALLED_AFTER, WaitingReason

from .graph import Graph
from .status_draft import StatusDraft, cut, seconds_between, stage_of
from .types import StageKey

#: The fields about waiting of a record that does not wait.
NOT_WAITING: dict[str, Any] = {"pending_since": None, "counting_since": None, "waited_seconds": 0.0}


def note_wait(draft: StatusDraft, key: StageKey, reason: WaitingReason, message: str) -> StageStatus:
    """Writes into the record of an attempt that has not started what it waits for, and reports another reason than
    before. Time in a queue stops the clock; it goes on from where it was."""
    record, now = draft.records[key], draft.now
    if record.waiting is not reason and reason is not WaitingReason.STARTING:
        draft.event(reason, f"{key}: {message}" if message else str(key), key, warning=reason.stalls)
    counting = record.counting_since or now
    return draft.change(
        key,
        pending_since=record.pending_since or now,
        counting_since=counting if reason.counts else None,
        waited_seconds=record.waited_seconds if reason.counts else waited(record, now),
        reason=str(reason),
        message=cut(message),
    )


def waited(record: StageStatus, now: datetime) -> float:
    """Seconds of the present wait that count against `pendingDeadlineSeconds`."""
    return record.waited_seconds + seconds_between(record.counting_since, now)


def stalls(record: StageStatus, now: datetime) -> bool:
    """Whether it waits for what only a person can do, and has for a while."""
    return record.waiting is not None and record.waiting.stalls and waited(record, now) >= STALLED_AFTER


def told(record: StageStatus) -> bool:
    """Whether it waits for something that people are told of."""
    return record.waiting not in (None, WaitingReason.STARTING)


def is_idle(record: StageStatus) -> bool:
    """Whether an unfinished attempt does nothing, and it is known why. One of whose pods some run does something."""
    pending = record.state is AttemptState.PENDING
    return told(record) and (pending or record.waiting is WaitingReason.SIDECAR_STILL_RUNS)


def is_held(record: StageStatus) -> bool:
    """Whether it does nothing because a queue or a person holds it back."""
    waiting = record.waiting
    return record.state is AttemptState.PENDING and waiting is not None and not waiting.counts


def approvals(draft: StatusDraft) -> list[StageKey]:
    """Stages that wait for a person."""
    return sorted(stage_of(r) for r in draft.records.values() if r.state is AttemptState.AWAITING_APPROVAL)


def mark_approvals(cycle: Cycle, graph: Graph, draft: StatusDraft, *, under_way: bool) -> None:
    """Gives a record to every stage that only waits for a person, and takes it from those that no longer do."""
    approved = {StageKey(ref.iteration, ref.stage) for ref in cycle.spec.approved}
    asked = {
        node.key
        for node in graph
        if under_way
        and node.key.name in cycle.spec.pause_before
        and node.key not in approved
        and ((record := draft.get(node.key)) is None or record.attempt == 0)
        and all(draft.done(need) for need in node.needs)
    }
    waiting = set(approvals(draft))
    for key in waiting - asked:
        token = draft.records[key].token
        del draft.records[key]
        if token:  # restartFrom's
            draft.put(StageStatus(iteration=key.iteration, name=key.name, token=token))
    for key in sorted(asked - waiting):
        record = draft.get(key) or StageStatus(iteration=key.iteration, name=key.name)
        state = AttemptState.AWAITING_APPROVAL
        draft.put(record.model_copy(update={"state": state, "pending_since": draft.now}))
        draft.event(WaitingReason.AWAITING_APPROVAL, f"{key}: waiting for approval", key)
