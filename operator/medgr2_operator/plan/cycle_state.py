"""The state of the cycle as a whole: complete, failing, suspended, or under way."""

from __future__ import annotations

from dataclasses import dataclass

from medgr2_api.cycle import Cycle
from medgr2_api.scheduling import OnExceeded
from medgr2_api.status import CycleStatus

from . import budget
from .failure_policy import StopReason
from .graph import Graph
from .scores import stopped_at
from .status_draft import StatusDraft
from .types import Observed


@dataclass(frozen=True)
class ConditionReason:
    """Reason and message of a cycle's condition."""

    reason: str
    message: str = ""
    stop: StopReason = StopReason.CYCLE_FAILED
    """What running attempts are stopped with."""


@dataclass(frozen=True)
class CycleState:
    """The first of these that holds decides; none: the cycle is under way."""

    complete: ConditionReason | None = None
    failing: ConditionReason | None = None
    """It has failed as soon as nothing runs any more."""
    suspended: ConditionReason | None = None
    """Suspended."""
    workspace: ConditionReason | None = None
    """Nothing can start: the workspace cannot be used."""
    finished: bool = False
    """Complete, or failed and nothing runs any more."""


def ended_state(status: CycleStatus) -> CycleState:
    """The state of a cycle that has ended, as its status says."""
    held = {c.type: ConditionReason(c.reason, c.message) for c in status.conditions if c.status == "True"}
    return CycleState(complete=held.get("Complete"), failing=held.get("Failed"), finished=True)


def iterations(cycle: Cycle, draft: StatusDraft) -> int:
    """Iterations of the loop, as far as is known: `spec.iterations`, or where early stopping ends it."""
    planned, rule = cycle.spec.iterations, cycle.spec.early_stopping
    if rule is None:
        return planned
    return min(planned, stopped_at(draft.scores, rule, newest_iteration(draft)) or planned)


def newest_iteration(draft: StatusDraft) -> int:
    """The newest iteration of which anything has started."""
    return max((key.iteration for key, record in draft.records.items() if record.attempt), default=0)


def decide(cycle: Cycle, graph: Graph, draft: StatusDraft, observed: Observed) -> CycleState:
    """The cycle's state."""
    idle = not any(True for _ in draft.active())
    if all(draft.done(node.key) for node in graph):
        return CycleState(complete=_completion(cycle, draft), finished=idle)
    spent = budget.exceeded(cycle.spec, draft, graph)
    failing = _failure(cycle, graph, draft, spent)
    if failing is not None:
        return CycleState(failing=failing, finished=idle)
    if cycle.spec.suspend:
        return CycleState(suspended=ConditionReason("Suspended", "spec.suspend is true", StopReason.SUSPENDED))
    if spent:
        return CycleState(
            suspended=ConditionReason("BudgetExceeded", f"{spent}; raise it to resume", StopReason.BUDGET_EXCEEDED)
        )
    if not observed.workspace_ready:
        return CycleState(workspace=ConditionReason("NotReady", observed.workspace_message))
    return CycleState()


def _completion(cycle: Cycle, draft: StatusDraft) -> ConditionReason:
    ran = iterations(cycle, draft)
    if ran < cycle.spec.iterations:
        return ConditionReason("EarlyStopped", f"no improvement on validation: stopped after iteration {ran}")
    return ConditionReason("AllStagesSucceeded", f"{ran} iterations")


def _failure(cycle: Cycle, graph: Graph, draft: StatusDraft, spent: str) -> ConditionReason | None:
    """Why the cycle fails, if it does."""
    for node in graph:
        record = draft.get(node.key)
        if record is not None and record.given_up:
            return ConditionReason("StageFailed", f"{node.key}: {record.reason}: {record.message}")
    if late := budget.deadline_passed(cycle.spec, cycle.status, draft):
        return ConditionReason("DeadlineExceeded", late)
    if spent and cycle.spec.budget.on_exceeded is OnExceeded.FAIL:
        return ConditionReason("BudgetExceeded", spent)
    return None
