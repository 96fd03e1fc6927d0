"""Where the cycle as a whole stands: complete, failing, suspended, or under way."""

from __future__ import annotations

from dataclasses import dataclass

from medgr2_api.cycle import Cycle
from medgr2_api.scheduling import OnExceeded

from . import budget
from .failure_policy import Stop
from .graph import Graph
from .scores import stopped_at
from .status_draft import Ledger
from .types import Observed


@dataclass(frozen=True)
class Verdict:
    """Why a cycle stands still or has ended."""

    reason: str
    message: str = ""
    stop: Stop = Stop.CYCLE_FAILED
    """What running attempts are stopped with."""


@dataclass(frozen=True)
class Standing:
    """The first of these that holds decides; none: the cycle is under way."""

    complete: Verdict | None = None
    failing: Verdict | None = None
    """It has failed as soon as nothing runs any more."""
    held: Verdict | None = None
    """Suspended."""
    workspace: Verdict | None = None
    """Nothing can start: the workspace cannot be used."""
    finished: bool = False
    """Complete, or failed and nothing runs any more."""


def iterations(cycle: Cycle, ledger: Ledger) -> int:
    """How often round the loop, as far as is known: `spec.iterations`, or where early stopping ends it."""
    wanted, rule = cycle.spec.iterations, cycle.spec.early_stopping
    if rule is None:
        return wanted
    return min(wanted, stopped_at(ledger.scores, rule, newest_iteration(ledger)) or wanted)


def newest_iteration(ledger: Ledger) -> int:
    """The newest iteration of which anything has started."""
    return max((key.iteration for key, record in ledger.records.items() if record.attempt), default=0)


def decide(cycle: Cycle, graph: Graph, ledger: Ledger, observed: Observed) -> Standing:
    """Where the cycle stands."""
    idle = not any(True for _ in ledger.active())
    if all(ledger.done(node.key) for node in graph):
        return Standing(complete=_completion(cycle, ledger), finished=idle)
    spent = budget.exceeded(cycle.spec, ledger, graph)
    failing = _failure(cycle, graph, ledger, spent)
    if failing is not None:
        return Standing(failing=failing, finished=idle)
    if cycle.spec.suspend:
        return Standing(held=Verdict("Suspended", "spec.suspend is true", Stop.SUSPENDED))
    if spent:
        return Standing(held=Verdict("BudgetExceeded", f"{spent}; raise it to go on", Stop.BUDGET_EXCEEDED))
    if not observed.workspace_ready:
        return Standing(workspace=Verdict("NotReady", observed.workspace_message))
    return Standing()


def _completion(cycle: Cycle, ledger: Ledger) -> Verdict:
    ran = iterations(cycle, ledger)
    if ran < cycle.spec.iterations:
        return Verdict("EarlyStopped", f"no improvement on validation: stopped after iteration {ran}")
    return Verdict("AllStagesSucceeded", f"{ran} iterations")


def _failure(cycle: Cycle, graph: Graph, ledger: Ledger, spent: str) -> Verdict | None:
    """Why the cycle fails, if it does."""
    for node in graph:
        record = ledger.get(node.key)
        if record is not None and record.given_up:
            return Verdict("StageFailed", f"{node.key}: {record.reason}: {record.message}")
    if late := budget.deadline_passed(cycle.spec, cycle.status, ledger):
        return Verdict("DeadlineExceeded", late)
    if spent and cycle.spec.budget.on_exceeded is OnExceeded.FAIL:
        return Verdict("BudgetExceeded", spent)
    return None
