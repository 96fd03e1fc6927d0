"""How a cycle tells people and `kubectl wait` where it is: conditions, phase, summary, models, best."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from medgr2_api.cycle import Cycle
from medgr2_api.stages import definition
from medgr2_api.status import AttemptState, Condition, ModelPointer, Models, Phase, StageStatus

from .cycle_state import Standing, Verdict
from .graph import Graph
from .scheduling import Starts
from .scores import by_iteration
from .status_draft import Ledger, cut, stage_of
from .types import StageKey

_CONDITION_LENGTH = 1024


def conditions(cycle: Cycle, standing: Standing, starts: Starts, ledger: Ledger) -> list[Condition]:
    """WorkspaceReady, Progressing, Suspended, Complete, Failed; NameConflict from its first time on."""
    failed = standing.failing if standing.finished else None
    complete = standing.complete if standing.finished else None
    conflict = (
        Verdict("NameConflict", f"not ours: Job {', '.join(starts.conflicts)}; delete it, or rename the cycle")
        if starts.conflicts
        else None
    )
    progress, moving = _progress(standing, starts, ledger, conflict)
    told: list[tuple[str, bool, Verdict]] = [
        ("WorkspaceReady", standing.workspace is None, standing.workspace or Verdict("Ready")),
        ("Progressing", moving, progress),
        ("Suspended", standing.held is not None, standing.held or Verdict("NotSuspended")),
        ("Complete", complete is not None, complete or Verdict("NotComplete")),
        ("Failed", failed is not None, failed or Verdict("NotFailed")),
    ]
    before = {condition.type: condition for condition in cycle.status.conditions}
    if conflict or "NameConflict" in before:
        told.append(("NameConflict", conflict is not None, conflict or Verdict("NoConflict")))
    return [_condition(cycle, before.get(kind), kind, holds, why, ledger) for kind, holds, why in told]


def _condition(
    cycle: Cycle, before: Condition | None, kind: str, holds: bool, why: Verdict, ledger: Ledger
) -> Condition:
    status: Literal["True", "False"] = "True" if holds else "False"
    message, generation = cut(why.message, _CONDITION_LENGTH), cycle.metadata.generation
    if before is not None and before.status == status:
        if (before.reason, before.message, before.observed_generation) == (why.reason, message, generation):
            return before
        return before.model_copy(update={"reason": why.reason, "message": message, "observed_generation": generation})
    return Condition(
        type=kind,
        status=status,
        reason=why.reason,
        message=message,
        observed_generation=generation,
        last_transition_time=ledger.now,
    )


def _progress(standing: Standing, starts: Starts, ledger: Ledger, conflict: Verdict | None) -> tuple[Verdict, bool]:
    """Whether the cycle moves, and what it does or waits for."""
    active = list(ledger.active())
    still = (standing.complete if standing.finished else None) or standing.failing or standing.held
    if still is not None:
        stopping = f"; stopping {_names(map(stage_of, active))}" if active else ""
        return Verdict(still.reason, still.message + stopping), False
    waiting = [record for record in active if record.state is AttemptState.PENDING and record.reason]
    if waiting:
        causes = "; ".join(f"{stage_of(r)}: {r.reason} {r.message}".rstrip() for r in waiting)
        return Verdict(waiting[0].reason, f"waits to be scheduled: {causes}"), len(waiting) < len(active)
    if active:
        return Verdict("StagesRunning", _names(map(stage_of, active))), True
    if conflict is not None:
        return conflict, False
    if standing.workspace is not None:
        return Verdict("WorkspaceNotReady", standing.workspace.message), False
    if starts.backing_off:
        return Verdict("BackingOff", f"{_names(starts.backing_off)} will start again"), True
    if starts.paused:
        return Verdict("Paused", f"waits for approval: {_names(starts.paused)}"), False
    return Verdict("Starting"), True


def phase(standing: Standing, starts: Starts, ledger: Ledger) -> Phase:
    """One word for a table."""
    if standing.finished:
        return Phase.COMPLETE if standing.complete else Phase.FAILED
    if standing.held is not None:
        return Phase.SUSPENDED
    if any(True for _ in ledger.active()):
        return Phase.RUNNING
    if starts.paused:
        return Phase.PAUSED
    return Phase.RUNNING if ledger.records else Phase.PENDING


def summary(word: Phase, ledger: Ledger, iteration: int, iterations: int) -> str:
    """`2/3 grpo 41% · validation 0.871 (+0.014)`."""
    running = sorted(
        (record for record in ledger.active() if record.state is AttemptState.RUNNING), key=lambda r: r.iteration
    )
    if running:  # generation runs ahead: the iteration that matters is the older one
        iteration = running[0].iteration
    doing = ", ".join(_doing(record, iteration) for record in running) or word.lower()
    parts = [f"{iteration}/{iterations} {doing}"]
    values = list(by_iteration(ledger.scores).values())
    if values:
        change = f" ({values[-1] - values[-2]:+.3f})" if len(values) > 1 else ""
        parts.append(f"validation {values[-1]:.3f}{change}")
    return " · ".join(parts)


def models(graph: Graph, ledger: Ledger) -> Models:
    """The newest model of each kind; of those that have to be promoted, the newest promoted one."""
    newest: dict[str, StageStatus] = {}
    for (iteration, kind), key in graph.makers.items():
        if ledger.done(key):
            record = ledger.records[key]
            if iteration == 0 or not definition(key.name).promoted or record.promoted is not False:
                newest[kind] = record
    return Models(
        **{
            kind: ModelPointer(iteration=r.iteration, stage=r.name, digest=r.output_digest)
            for kind, r in newest.items()
        }
    )


def _doing(record: StageStatus, iteration: int) -> str:
    name = str(record.name) if record.iteration == iteration else str(stage_of(record))
    progress = record.progress
    if progress is None or progress.total <= 0:
        return name
    return f"{name} {min(100, 100 * progress.step // progress.total)}%"


def _names(keys: Iterable[StageKey]) -> str:
    return ", ".join(str(key) for key in keys)
