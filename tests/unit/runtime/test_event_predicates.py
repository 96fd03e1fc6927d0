"""Which events wake the operator, and how urgently."""

from __future__ import annotations

from typing import Any

from medgr2_operator.runtime.event_predicates import SOON, News


def job(*, conditions: tuple[str, ...] = (), suspend: bool = False, deleting: bool = False, **status: int) -> Any:
    """A Job as far as it matters here."""
    told = [{"type": kind, "status": "True"} for kind in conditions]
    metadata = {"uid": "u", **({"deletionTimestamp": "2026-01-01T00:00:00Z"} if deleting else {})}
    return {"metadata": metadata, "spec": {"suspend": suspend}, "status": {**status, "conditions": told}}


def cycle(generation: int, *, phase: str = "", deleting: bool = False) -> Any:
    """A cycle as far as it matters here."""
    deletion = {"deletionTimestamp": "2026-01-01T00:00:00Z"} if deleting else {}
    return {"metadata": {"uid": "c", "generation": generation, **deletion}, "status": {"phase": phase}}


def test_a_job_from_its_creation_to_its_end() -> None:
    news = News()
    told = [
        news.of_job("ADDED", job()),
        news.of_job("MODIFIED", job(active=1)),
        news.of_job("MODIFIED", job(active=1, ready=1)),
        news.of_job("MODIFIED", job(active=1, ready=1)),
        news.of_job("MODIFIED", job(terminating=1)),
        news.of_job("MODIFIED", job(conditions=("SuccessCriteriaMet",))),
        news.of_job("MODIFIED", job(conditions=("SuccessCriteriaMet", "Complete"), succeeded=1)),
        news.of_job("MODIFIED", job(conditions=("SuccessCriteriaMet", "Complete"), succeeded=1)),
        news.of_job("MODIFIED", job(conditions=("SuccessCriteriaMet", "Complete"), succeeded=1, deleting=True)),
        news.of_job("DELETED", job(conditions=("SuccessCriteriaMet", "Complete"), succeeded=1, deleting=True)),
    ]
    assert told == [None, None, SOON, None, None, None, 0.0, None, 0.0, 0.0]


def test_a_queue_that_takes_its_quota_back() -> None:
    news = News()
    assert news.of_job("ADDED", job(suspend=True)) is None
    assert news.of_job("MODIFIED", job(active=1)) == SOON, "what it waits for is another thing now"
    assert news.of_job("MODIFIED", job(active=1, ready=1)) == SOON
    assert news.of_job("MODIFIED", job(suspend=True)) == SOON


def test_pods_that_are_not_ready_any_more() -> None:
    news = News()
    news.of_job("ADDED", job(active=1, ready=1))
    assert news.of_job("MODIFIED", job(active=1)) == SOON


def test_what_is_listed_at_the_start_waits_for_the_list_of_cycles() -> None:
    news = News()
    assert news.of_job(None, job(conditions=("Failed",), failed=1)) == SOON
    assert news.of_cycle(None, cycle(1)) == 0.0


def test_a_new_job_of_a_name_that_was_deleted_is_new() -> None:
    news = News()
    news.of_job("ADDED", job(active=1, ready=1))
    news.of_job("DELETED", job(active=1, ready=1))
    assert news.of_job("ADDED", job()) is None
    assert news.of_job("MODIFIED", job(active=1, ready=1)) == SOON


def test_only_people_change_a_cycle() -> None:
    news = News()
    told = [
        news.of_cycle("ADDED", cycle(1)),
        news.of_cycle("MODIFIED", cycle(1, phase="Running")),
        news.of_cycle("MODIFIED", cycle(2, phase="Running")),
        news.of_cycle("MODIFIED", cycle(2, phase="Running", deleting=True)),
        news.of_cycle("DELETED", cycle(2, phase="Running", deleting=True)),
    ]
    assert told == [0.0, None, 0.0, 0.0, 0.0]
