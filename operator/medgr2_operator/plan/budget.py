"""Money and time: what is spent, what is left, and when that runs out."""

from __future__ import annotations

from medgr2_api.cycle import CycleSpec
from medgr2_api.stage_contract import BUDGET_SPENT
from medgr2_api.stages import definition
from medgr2_api.status import CycleStatus, StageStatus

from .graph import Graph
from .status_draft import StatusDraft, seconds_between

_SECONDS_PER_HOUR = 3600.0


def exceeded(spec: CycleSpec, draft: StatusDraft, graph: Graph) -> str:
    """Which budget is spent, in words; empty: none, or nothing is left to do that would cost of it."""
    budget = spec.budget
    if budget.gpu_hours is not None and any(not draft.done(node.key) for node in graph):
        running = [record for record in draft.active() if record.running_since is not None]
        used = draft.usage.gpu_seconds + sum(
            record.gpus * seconds_between(record.running_since, draft.now) for record in running
        )
        left = budget.gpu_hours * _SECONDS_PER_HOUR - used
        if left <= 0:
            return f"budget.gpuHours: {used / _SECONDS_PER_HOUR:.1f} of {budget.gpu_hours:g} used"
        if gpus := sum(record.gpus for record in running):
            draft.wake_in(left / gpus)
    if budget.generator_usd is not None and any(
        definition(node.key.name).pays and not draft.done(node.key) for node in graph
    ):
        spent = draft.usage.generator_usd
        reported = any(_reported_spent(record, budget.generator_usd) for record in draft.records.values())
        if reported or spent >= budget.generator_usd:
            return f"budget.generatorUSD: {spent:.2f} of {budget.generator_usd:g} spent"
    return ""


def _reported_spent(record: StageStatus, budget: float) -> bool:
    """Whether the stage stopped because its next question might have passed this budget. It reads the ledgers on the
    volume, so it knows better than the status; what is left may be less than one question costs."""
    spent = definition(record.name).pays and record.reason == BUDGET_SPENT
    return spent and (record.generator_budget_usd or 0.0) >= budget


def active_seconds(status: CycleStatus, draft: StatusDraft) -> float:
    """The cycle's life so far, less the time it was suspended."""
    return status.active_seconds + seconds_between(status.active_since, draft.now)


def deadline_passed(spec: CycleSpec, status: CycleStatus, draft: StatusDraft) -> str:
    """Whether `activeDeadlineSeconds` is over, in words; empty: not yet."""
    if spec.active_deadline_seconds is None:
        return ""
    left = spec.active_deadline_seconds - active_seconds(status, draft)
    if left <= 0:
        return f"activeDeadlineSeconds: longer than {spec.active_deadline_seconds} s"
    if not spec.suspend and (status.active_since is not None or status.start_time is None):  # else it stands still
        draft.wake_in(left)
    return ""
