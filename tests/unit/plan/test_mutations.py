"""Can the simulator fail at all? Each mutation breaks one rule of the planner, and the simulator has to notice, by
schedules that test_schedules.py runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.support import planner_simulator
from tests.support.event_schedules import SEEDS, run_schedule
from tests.support.planner_invariants import InvariantBroken
from tests.support.planner_simulator import PlannerSimulator

from medgr2_api.status import AttemptState, CycleStatus
from medgr2_operator.plan import (
    attempt_transitions,
    cycle_state,
    graph,
    observation_index,
    planner,
    restart,
    scheduling,
    status_compaction,
    status_draft,
)
from medgr2_operator.plan.observation_index import AttemptSight
from medgr2_operator.plan.types import Observed, ObservedPod

Mutate = Callable[[pytest.MonkeyPatch], None]


def _no_live_pod_check(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(observation_index.ObservationIndex, "alive", lambda self, stage: False)


def _only_pods_block(patch: pytest.MonkeyPatch) -> None:
    """A Job that has no pod yet is taken for harmless."""
    note = observation_index.ObservationIndex._note

    def pods_only(self: Any, seen: Any, *, live: bool) -> None:
        note(self, seen, live=live and isinstance(seen, ObservedPod))

    patch.setattr(observation_index.ObservationIndex, "_note", pods_only)


def _vanished_is_unborn(patch: pytest.MonkeyPatch) -> None:
    """A Job that was seen and is gone is created again under its name."""

    def again(ctx: Any) -> None:
        ctx.draft.change(ctx.key, state=AttemptState.PENDING, job_uid="", running_since=None)

    for state in (AttemptState.PENDING, AttemptState.RUNNING):
        patch.setitem(attempt_transitions._TRANSITIONS, (state, AttemptSight.ABSENT), again)


def _reused_numbers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scheduling, "_number", lambda record, index: max(1, record.attempt))


def _forgotten_intent(patch: pytest.MonkeyPatch) -> None:
    def forgetful(status: CycleStatus) -> CycleStatus:
        kept = [record for record in status.stages if record.job_uid or not record.attempt]
        return status_compaction.compact(status.model_copy(update={"stages": kept}))

    patch.setattr(planner, "compact", forgetful)


def _cache_trusted(patch: pytest.MonkeyPatch) -> None:
    """Pods are known as they were a few looks ago."""
    read = PlannerSimulator.observe

    def observe(self: PlannerSimulator, *given: Any) -> Observed:
        seen = self.__dict__.setdefault("seen", [])
        seen.append(read(self, *given))
        return replace(seen[-1], pods=seen[-4:][0].pods)

    patch.setattr(PlannerSimulator, "observe", observe)


def _read_too_little(patch: pytest.MonkeyPatch) -> None:
    """Of a cycle that goes on, what the iteration before still does is not looked at."""
    patch.setattr(
        planner_simulator,
        "oldest_relevant_iteration",
        lambda cycle: max((s.iteration for s in cycle.status.stages), default=0),
    )


def _inputs_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(graph.Node, "needs", frozenset())
    patch.setattr(scheduling, "input_refs", lambda node, draft: {})


def _models_go_on_unpromoted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(graph.Input, "chosen", lambda self, promoted: self.sources[0])


def _next_before_end_is_stored(patch: pytest.MonkeyPatch) -> None:
    """Harmless alone, but with it the Job of the end that was not stored is deleted at once."""
    patch.setattr(status_draft.StatusDraft, "stored", lambda self, key: True)
    why = planner._why_delete

    def hasty(job: Any, book: Any, seen: Any) -> str:
        record = book.get(job.key.stage)
        return "Superseded" if record is not None and record.attempt > job.key.attempt else why(job, book, seen)

    patch.setattr(planner, "_why_delete", hasty)


def _old_runs_not_stopped(patch: pytest.MonkeyPatch) -> None:
    """Nothing is ever deleted: a suspended cycle runs on."""
    patch.setattr(planner, "_deletes", lambda draft, index: ())


def _ends_are_not_final(patch: pytest.MonkeyPatch) -> None:
    """An attempt that is lost comes back when its Job, or the lack of it, is looked at again."""
    patch.setattr(status_draft, "ACTIVE", status_draft.ACTIVE | {AttemptState.GONE, AttemptState.FAILED})
    for sight in AttemptSight:
        for state in (AttemptState.GONE, AttemptState.FAILED):
            patch.setitem(
                attempt_transitions._TRANSITIONS,
                (state, sight),
                attempt_transitions._TRANSITIONS[AttemptState.RUNNING, sight],
            )


def _endless_backoff(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        scheduling, "_backoff_left", lambda cycle, draft, record: 1.0 if record and record.retry_after else 0.0
    )


def _tokens_forgotten(patch: pytest.MonkeyPatch) -> None:
    """restartFrom acts again and again."""
    act = restart.restart
    patch.setattr(planner, "restart", lambda *given: ([], act(*given)[1]))


def _failure_unnoticed(patch: pytest.MonkeyPatch) -> None:
    """A stage that has given up does not fail the cycle."""
    patch.setattr(cycle_state, "_failure", lambda *given: None)


def _impure(patch: pytest.MonkeyPatch) -> None:
    """Records are changed in place."""

    def change(self: status_draft.StatusDraft, key: Any, **changes: Any) -> Any:
        for name, value in changes.items():
            setattr(self.records[key], name, value)
        return self.records[key]

    patch.setattr(status_draft.StatusDraft, "change", change)


@pytest.mark.parametrize(
    ("mutate", "invariant"),
    [
        (_no_live_pod_check, "one writer"),
        (_only_pods_block, "one writer"),
        (_vanished_is_unborn, "created once"),
        (_reused_numbers, "terminal for ever"),
        (_forgotten_intent, "intent first"),
        (_cache_trusted, "one writer"),
        (_read_too_little, "one writer|created once|ends|suspends"),
        (_inputs_ignored, "inputs exist"),
        (_models_go_on_unpromoted, "promoted"),
        (_next_before_end_is_stored, "recorded first"),
        (_old_runs_not_stopped, "suspends"),
        (_ends_are_not_final, "terminal for ever"),
        (_endless_backoff, "ends"),
        (_tokens_forgotten, "ends|forward"),
        (_failure_unnoticed, "ends"),
        (_impure, "idempotent|pure"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_the_simulator_notices(monkeypatch: pytest.MonkeyPatch, mutate: Mutate, invariant: str) -> None:
    mutate(monkeypatch)
    with pytest.raises(InvariantBroken, match=invariant):
        _explore()


def test_optimistic_concurrency_is_needed() -> None:
    """An API server that takes every write lets a planner with an old reading do harm."""
    with pytest.raises(InvariantBroken):
        _explore(check_conflicts=False)


def _explore(**options: Any) -> None:
    for seed in range(SEEDS):
        run_schedule(seed, **options)
