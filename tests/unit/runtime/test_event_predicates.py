"""Which events wake the operator, and how urgently."""

from __future__ import annotations

from typing import Any

from medgr2_operator.runtime.event_predicates import COALESCE_SECONDS, ChangeFilter


def job(*, conditions: tuple[str, ...] = (), suspend: bool = False, deleting: bool = False, **status: int) -> Any:
    """A Job as far as it matters here."""
    listed = [{"type": kind, "status": "True"} for kind in conditions]
    metadata = {"uid": "u", **({"deletionTimestamp": "2026-01-01T00:00:00Z"} if deleting else {})}
    return {"metadata": metadata, "spec": {"suspend": suspend}, "status": {**status, "conditions": listed}}


def cycle(generation: int, *, phase: str = "", deleting: bool = False) -> Any:
    """A cycle as far as it matters here."""
    deletion = {"deletionTimestamp": "2026-01-01T00:00:00Z"} if deleting else {}
    return {"metadata": {"uid": "c", "generation": generation, **deletion}, "status": {"phase": phase}}


def test_a_job_from_its_creation_to_its_end() -> None:
    changes = ChangeFilter()
    delays = [
        changes.delay_for_job("ADDED", job()),
        changes.delay_for_job("MODIFIED", job(active=1)),
        changes.delay_for_job("MODIFIED", job(active=1, ready=1)),
        changes.delay_for_job("MODIFIED", job(active=1, ready=1)),
        changes.delay_for_job("MODIFIED", job(terminating=1)),
        changes.delay_for_job("MODIFIED", job(conditions=("SuccessCriteriaMet",))),
        changes.delay_for_job("MODIFIED", job(conditions=("SuccessCriteriaMet", "Complete"), succeeded=1)),
        changes.delay_for_job("MODIFIED", job(conditions=("SuccessCriteriaMet", "Complete"), succeeded=1)),
        changes.delay_for_job(
            "MODIFIED", job(conditions=("SuccessCriteriaMet", "Complete"), succeeded=1, deleting=True)
        ),
        changes.delay_for_job(
            "DELETED", job(conditions=("SuccessCriteriaMet", "Complete"), succeeded=1, deleting=True)
        ),
    ]
    assert delays == [None, None, COALESCE_SECONDS, None, None, None, 0.0, None, 0.0, 0.0]


def test_a_queue_that_takes_its_quota_back() -> None:
    changes = ChangeFilter()
    assert changes.delay_for_job("ADDED", job(suspend=True)) is None
    assert changes.delay_for_job("MODIFIED", job(active=1)) == COALESCE_SECONDS, (
        "what it waits for is another thing now"
    )
    assert changes.delay_for_job("MODIFIED", job(active=1, ready=1)) == COALESCE_SECONDS
    assert changes.delay_for_job("MODIFIED", job(suspend=True, active=1)) == COALESCE_SECONDS
    assert changes.delay_for_job("MODIFIED", job(suspend=True, terminating=1)) is None
    assert changes.delay_for_job("MODIFIED", job(suspend=True, terminating=0)) == COALESCE_SECONDS, (
        "the last of its pods has ended: from now on it waits"
    )
    assert changes.delay_for_job("MODIFIED", job(suspend=True)) is None


def test_pods_that_are_not_ready_any_more() -> None:
    changes = ChangeFilter()
    changes.delay_for_job("ADDED", job(active=1, ready=1))
    assert changes.delay_for_job("MODIFIED", job(active=1)) == COALESCE_SECONDS


def test_what_is_listed_at_the_start_waits_for_the_list_of_cycles() -> None:
    changes = ChangeFilter()
    assert changes.delay_for_job(None, job(conditions=("Failed",), failed=1)) == COALESCE_SECONDS
    assert changes.delay_for_cycle(None, cycle(1)) == 0.0


def test_a_new_job_of_a_name_that_was_deleted_is_new() -> None:
    changes = ChangeFilter()
    changes.delay_for_job("ADDED", job(active=1, ready=1))
    changes.delay_for_job("DELETED", job(active=1, ready=1))
    assert changes.delay_for_job("ADDED", job()) is None
    assert changes.delay_for_job("MODIFIED", job(active=1, ready=1)) == COALESCE_SECONDS


def test_only_people_change_a_cycle() -> None:
    changes = ChangeFilter()
    delays = [
        changes.delay_for_cycle("ADDED", cycle(1)),
        changes.delay_for_cycle("MODIFIED", cycle(1, phase="Running")),
        changes.delay_for_cycle("MODIFIED", cycle(2, phase="Running")),
        changes.delay_for_cycle("MODIFIED", cycle(2, phase="Running", deleting=True)),
        changes.delay_for_cycle("DELETED", cycle(2, phase="Running", deleting=True)),
    ]
    assert delays == [0.0, None, 0.0, 0.0, 0.0]
