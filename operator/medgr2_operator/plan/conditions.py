"""The cycle's state for people and `kubectl wait`: conditions, phase, summary, models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from medgr2_api.cycle import Cycle
from medgr2_api.percent import percent, points
from medgr2_api.stages import definition
from medgr2_api.status import AttemptState, Condition, ModelPointer, Models, Phase, StageStatus
from medgr2_api.waiting import WaitingReason

from .cycle_state import ConditionReason, CycleState
from .graph import Graph, first_that_counts
from .kstatus import kstatus_conditions
from .scheduling import Starts
from .scores import by_iteration, unmeasured
from .spec_edits import SpecEdits
from .status_draft import StatusDraft, cut, stage_of
from .types import StageKey
from .waits import approvals, is_idle, told

#: The condition that says whether what was made follows from the spec of now.
SPEC_APPLIED = "SpecApplied"
_CONDITION_LENGTH = 1024


def conditions(cycle: Cycle, state: CycleState, starts: Starts, draft: StatusDraft) -> list[Condition]:
    """WorkspaceReady, Progressing, Suspended, Complete, Failed, and for kstatus Ready, Reconciling, Stalled;
    AwaitingApproval and NameConflict from their first time on."""
    failed = state.failing if state.finished else None
    complete = state.complete if state.finished else None
    conflict = (
        ConditionReason(
            "NameConflict",
            f"Job {', '.join(starts.conflicts)} exists and is not owned by this cycle; delete it, or rename the cycle",
        )
        if starts.conflicts
        else None
    )
    progress, moving = _progress(state, starts, draft, conflict)
    if overlooked := _overlooked(cycle, draft):
        progress = replace(progress, message="; ".join(filter(None, (progress.message, overlooked))))
    rows: list[tuple[str, bool, ConditionReason]] = [
        ("WorkspaceReady", state.workspace is None, state.workspace or ConditionReason("Ready")),
        ("Progressing", moving, progress),
        ("Suspended", state.suspended is not None, state.suspended or ConditionReason("NotSuspended")),
        ("Complete", complete is not None, complete or ConditionReason("NotComplete")),
        ("Failed", failed is not None, failed or ConditionReason("NotFailed")),
    ]
    before = {condition.type: condition for condition in cycle.status.conditions}
    rows += kstatus_conditions(state, starts, draft, progress, before.get("WorkspaceReady"))
    approval = (
        ConditionReason(WaitingReason.AWAITING_APPROVAL, _names(awaiting)) if (awaiting := approvals(draft)) else None
    )
    for kind, why, otherwise in (
        ("AwaitingApproval", approval, "NothingToApprove"),
        ("NameConflict", conflict, "NoConflict"),
    ):
        if why is not None or kind in before:
            rows.append((kind, why is not None, why or ConditionReason(otherwise)))
    return [_condition(cycle, before.get(kind), kind, holds, why, draft) for kind, holds, why in rows]


def _overlooked(cycle: Cycle, draft: StatusDraft) -> str:
    """What early stopping cannot look at, and what to do; empty: nothing."""
    if (rule := cycle.spec.early_stopping) is None:
        return ""
    evaluations = {key.iteration: key for key in draft.records if definition(key.name).measures and draft.done(key)}
    missing = unmeasured(draft.scores, rule.metric, evaluations)
    if not missing:
        return ""
    return (
        f"earlyStopping overlooks {_names(evaluations[iteration] for iteration in missing)}: no {rule.metric} on the"
        " validation split; measure it anew with restartFrom, or choose another spec.earlyStopping.metric"
    )


def spec_applied(cycle: Cycle, edits: SpecEdits, draft: StatusDraft) -> Condition:
    """Whether everything that was made follows from the spec as it is now; an event says when it no longer does."""
    before = next((condition for condition in cycle.status.conditions if condition.type == SPEC_APPLIED), None)
    why = ConditionReason("OtherParameters", edits.message()) if edits else ConditionReason("AllStages")
    condition = _condition(cycle, before, SPEC_APPLIED, not edits, why, draft)
    if edits and (before is None or before.message != condition.message):
        draft.event("SpecNotApplied", condition.message, warning=True)
    return condition


def _condition(
    cycle: Cycle, before: Condition | None, kind: str, holds: bool, why: ConditionReason, draft: StatusDraft
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
        last_transition_time=draft.now,
    )


def _progress(
    state: CycleState, starts: Starts, draft: StatusDraft, conflict: ConditionReason | None
) -> tuple[ConditionReason, bool]:
    """Whether the cycle moves, and what it does or waits for."""
    active = list(draft.active())
    still = (state.complete if state.finished else None) or state.failing or state.suspended
    if still is not None:
        stopping = f"; stopping {_names(map(stage_of, active))}" if active else ""
        return ConditionReason(still.reason, still.message + stopping), False
    approval = f"waiting for approval: {_names(starts.paused)}" if starts.paused else ""
    causes = [f"{stage_of(r)}: {r.reason} {r.message}".rstrip() for r in active if told(r)]
    idle = [record for record in active if is_idle(record)]
    if active:
        at_work = _names(stage_of(record) for record in active if record not in idle)
        waits = f"waiting: {'; '.join(causes)}" if causes else ""
        message = "; ".join(filter(None, (at_work, waits, approval)))
        return ConditionReason(idle[0].reason if idle else "StagesRunning", message), bool(at_work)
    if conflict is not None:
        return conflict, False
    if state.workspace is not None:
        return ConditionReason(WaitingReason.AWAITING_VOLUME, state.workspace.message), False
    if starts.backing_off:
        retries = "; ".join(_retry(draft.records[key]) for key in starts.backing_off)
        return ConditionReason(WaitingReason.BACKOFF, "; ".join(filter(None, (retries, approval)))), True
    if starts.paused:
        return ConditionReason(WaitingReason.AWAITING_APPROVAL, approval), False
    return ConditionReason("Starting"), True


def phase(state: CycleState, starts: Starts, draft: StatusDraft) -> Phase:
    """The cycle's phase."""
    if state.finished:
        return Phase.COMPLETE if state.complete else Phase.FAILED
    if state.suspended is not None:
        return Phase.SUSPENDED
    active = list(draft.active())
    if active:
        return Phase.WAITING if all(map(is_idle, active)) else Phase.RUNNING
    if starts.paused:
        return Phase.PAUSED
    if starts.backing_off or starts.conflicts or state.workspace is not None:
        return Phase.WAITING
    return Phase.RUNNING if draft.records else Phase.PENDING


def summary(phase: Phase, draft: StatusDraft, iteration: int, iterations: int) -> str:
    """`2/3 grpo 41% · validation macro accuracy 87.1 % (+1.4)`."""
    running = sorted(
        (record for record in draft.active() if record.state is AttemptState.RUNNING), key=lambda r: r.iteration
    )
    if running:  # generation runs ahead: the iteration that matters is the older one
        iteration = running[0].iteration
    under_way = phase in (Phase.RUNNING, Phase.WAITING, Phase.PAUSED)
    waiting = [r for r in draft.records.values() if under_way and told(r) and r not in running]
    doing = [_doing(record, iteration) for record in running]
    doing += [f"{_name(record, iteration)} {record.waiting}" for record in waiting]
    parts = [f"{iteration}/{iterations} {', '.join(doing) or phase.lower()}"]
    values = list(by_iteration(draft.scores).values())
    if values:
        change = f" ({points(values[-1] - values[-2])})" if len(values) > 1 else ""
        parts.append(f"validation macro accuracy {percent(values[-1])} %{change}")
    return " · ".join(parts)


def models(graph: Graph, draft: StatusDraft) -> Models:
    """The newest model of each kind that goes on, as the stages read it."""
    newest: dict[str, StageStatus] = {}
    for (_, kind), keys in graph.makers.items():
        if all(map(draft.done, keys)) and (version := first_that_counts(keys, draft.promoted)) is not None:
            newest[kind] = draft.records[version]
    return Models(
        **{
            kind: ModelPointer(iteration=r.iteration, stage=r.name, digest=r.output_digest)
            for kind, r in newest.items()
        }
    )


def _doing(record: StageStatus, iteration: int) -> str:
    name = _name(record, iteration) + (f" {record.waiting}" if told(record) else "")
    progress = record.progress
    if progress is None or progress.total <= 0:
        return name
    return f"{name} {min(100, 100 * progress.step // progress.total)}%"


def _name(record: StageStatus, iteration: int) -> str:
    return str(record.name) if record.iteration == iteration else str(stage_of(record))


def _retry(record: StageStatus) -> str:
    at = f"{record.retry_after:%H:%M:%S} UTC" if record.retry_after is not None else "once"
    return f"{stage_of(record)} will be retried at {at}: {record.reason} {record.message}".rstrip()


def _names(keys: Iterable[StageKey]) -> str:
    return ", ".join(str(key) for key in keys)
