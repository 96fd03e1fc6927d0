"""The conditions that kstatus knows, by which Flux, kpt and others tell how an object is.

Current: Ready. InProgress: Reconciling, or nothing of the three, while a person has the word (suspended, to be
approved). Failed: Stalled. At most one of the three is true; as long as one can wait for something to happen by
itself, it is Reconciling.
"""

from __future__ import annotations

from medgr2_api.status import Condition
from medgr2_api.waiting import STALLED_AFTER

from .cycle_state import ConditionReason, CycleState
from .failure_policy import StopReason
from .scheduling import Starts
from .status_draft import StatusDraft, seconds_between
from .waits import is_idle, stalls

_NO = ConditionReason("NotStalled")


def kstatus_conditions(
    state: CycleState, starts: Starts, draft: StatusDraft, progress: ConditionReason, workspace: Condition | None
) -> list[tuple[str, bool, ConditionReason]]:
    """Ready, Reconciling and Stalled.

    Args:
        state: of the cycle.
        starts: what was started now, and what was held back.
        draft: its stages.
        progress: what the condition Progressing says.
        workspace: the condition WorkspaceReady as it was.
    """
    ready = state.complete is not None and state.finished
    stalled = not ready and _stalled(state, starts, draft, workspace)
    reconciling = not (state.finished or stalled or _for_a_person(state, starts, draft))
    return [
        ("Ready", ready, progress),
        ("Reconciling", reconciling, progress if reconciling else ConditionReason("NotReconciling")),
        ("Stalled", stalled, progress if stalled else _NO),
    ]


def _stalled(state: CycleState, starts: Starts, draft: StatusDraft, workspace: Condition | None) -> bool:
    """Whether nothing goes on, and nothing will without a mending hand."""
    if state.finished:
        return True
    active = list(draft.active())
    if state.failing is not None or not all(map(is_idle, active)) or starts.backing_off:
        return False
    if state.suspended is not None:
        return state.suspended.stop is StopReason.BUDGET_EXCEEDED and not active
    if state.workspace is not None and not active:
        since = workspace.last_transition_time if workspace and workspace.status == "False" else None
        return seconds_between(since, draft.now) >= STALLED_AFTER
    return bool(starts.conflicts) or any(stalls(record, draft.now) for record in active)


def _for_a_person(state: CycleState, starts: Starts, draft: StatusDraft) -> bool:
    """Whether nothing goes on before somebody resumes or approves."""
    idle = not any(True for _ in draft.active()) and not starts.backing_off
    return idle and (state.suspended is not None or bool(starts.paused and not starts.conflicts))
