"""How attempts end, and what comes of it: retries, backoff, collecting, deadlines, the books."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.support import simulator_events
from tests.support.simulator_helpers import (
    GPU,
    condition,
    edit,
    fail,
    finish,
    job,
    make_simulator,
    reconcile,
    record,
    run,
    succeed,
    until,
    wait,
)

from medgr2_api.status import AttemptState, Phase
from medgr2_operator.plan.planner import plan
from medgr2_operator.plan.types import AttemptKey


@pytest.mark.parametrize("code", [2, 64, 65, 78])
def test_permanent_failure_fails_the_cycle_and_stops_the_rest(code: int) -> None:
    w = make_simulator(iterations=2)
    until(w, "sft", 1)
    reconcile(w)
    other = run(w, job(w, "generate", 2))
    found = run(w, job(w, "sft", 1))
    fail(w, found, code, reason="", message="row 7 of data/seed has no answer")
    made = reconcile(w)
    assert [(d.key.stage, d.reason) for d in made.deletes] == [(other.key.stage, "CycleFailed")]
    assert condition(w, "Failed").status == "False", "something still runs"
    w.obey()
    reconcile(w)
    assert condition(w, "Failed").status == "True"
    assert "row 7" in condition(w, "Failed").message
    assert w.status.phase is Phase.FAILED


def test_retries_are_counted_apart_from_restarts() -> None:
    w = make_simulator(failurePolicy={"maxRetries": 2, "maxInfraRestarts": 1})
    until(w, "sft")
    for code, counts in ((1, (1, 0)), (143, (1, 1)), (1, (2, 1))):
        fail(w, run(w, job(w, "sft")), code)
        reconcile(w)
        assert (record(w, "sft").retries, record(w, "sft").infra_restarts) == counts
        wait(w, 600)
        reconcile(w)
    fail(w, run(w, job(w, "sft")), 1)
    reconcile(w, 2)
    assert record(w, "sft").given_up
    assert w.status.phase is Phase.FAILED
    assert (w.status.usage.app_retries, w.status.usage.infra_restarts) == (3, 1)


def test_backoff_and_its_wake_up() -> None:
    w = make_simulator()
    fail(w, run(w, until(w, "sft")), 1)
    made = reconcile(w)
    assert made.requeue_after == 10
    wait(w, 9)
    assert not reconcile(w).creates
    wait(w, 1)
    assert reconcile(w).creates


def test_backoff_survives_a_clock_that_was_set_back() -> None:
    w = make_simulator()
    fail(w, run(w, until(w, "sft")), 1)
    reconcile(w)
    wait(w, -100_000)
    assert reconcile(w).creates


def test_checkpoint_with_progress_counts_nothing_and_resumes() -> None:
    w = make_simulator(failurePolicy={"maxInfraRestarts": 0})
    until(w, "sft")
    for step in (10, 20, 30):
        wait(w, 5)
        fail(w, run(w, job(w, "sft")), 85, checkpoint_step=step)
        reconcile(w)
        assert reconcile(w).creates[0].resumes
    assert record(w, "sft").infra_restarts == 0
    fail(w, run(w, job(w, "sft")), 85, checkpoint_step=30)
    reconcile(w)
    assert record(w, "sft").given_up, "no progress: an infrastructure failure"


def test_success_without_a_result_is_collected_not_repeated() -> None:
    w = make_simulator(stages=[{"name": "sft", **GPU}])
    found = run(w, until(w, "sft"))
    succeed(w, found, readable=False)
    reconcile(w)
    edit(w, policy=w.spec.policy.model_copy(update={"sft": w.spec.policy.sft.model_copy(update={"num_epochs": 9.0})}))
    made = reconcile(w)
    (create,) = made.creates
    assert create.request.collect
    assert create.request.input_hash == found.request.input_hash, "where it was published, whatever the spec says now"
    assert record(w, "sft").gpus == 0
    assert (record(w, "sft").retries, record(w, "sft").infra_restarts) == (0, 0)
    succeed(w, job(w, "sft"))
    reconcile(w)
    assert record(w, "sft").state is AttemptState.SUCCEEDED
    assert not record(w, "sft").reused


def test_collecting_that_finds_nothing_runs_the_stage_again() -> None:
    w = make_simulator()
    succeed(w, run(w, until(w, "sft")), readable=False)
    reconcile(w, 2)
    fail(w, run(w, job(w, "sft")), 75)
    reconcile(w)
    wait(w, 60)
    (create,) = reconcile(w).creates
    assert not create.request.collect


def test_collecting_that_cannot_be_read_either_is_bounded() -> None:
    w = make_simulator(failurePolicy={"maxInfraRestarts": 1})
    until(w, "sft")
    for _ in range(3):
        reconcile(w)
        succeed(w, run(w, job(w, "sft")), readable=False)
        reconcile(w)
        wait(w, 600)
    reconcile(w)
    assert w.status.phase is Phase.FAILED


def test_reused_results_are_counted() -> None:
    w = make_simulator()
    succeed(w, until(w, "sft"), reused=True)
    reconcile(w)
    assert record(w, "sft").reused
    assert w.status.usage.reused_stages == 1


def test_earlier_jobs_go_and_the_newest_stays() -> None:
    w = make_simulator()
    fail(w, run(w, until(w, "sft")), 1)
    reconcile(w)
    wait(w, 60)
    made = reconcile(w)
    assert made.creates
    assert not made.deletes, "the next attempt has to be stored first"
    made = reconcile(w)
    assert [(d.key.attempt, d.reason) for d in made.deletes] == [(1, "Superseded")]
    finish(w)
    assert {j.key.stage for j in w.jobs.values()} == {
        AttemptKey(r.iteration, r.name, "", 1).stage for r in w.status.stages
    }


def test_timeout_is_an_application_failure() -> None:
    w = make_simulator(stages=[{"name": "sft", "timeoutSeconds": 100}])
    run(w, until(w, "sft"))
    assert reconcile(w).requeue_after == 100
    wait(w, 100)
    made = reconcile(w)
    assert [d.reason for d in made.deletes] == ["TimeoutExceeded"]
    w.obey()
    reconcile(w)
    assert (record(w, "sft").retries, record(w, "sft").reason) == (1, "TimeoutExceeded")


def test_pending_deadline_names_the_cause() -> None:
    w = make_simulator(stages=[{"name": "sft", "pendingDeadlineSeconds": 100}])
    until(w, "sft")
    reconcile(w)
    assert condition(w, "Progressing").reason == "QuotaExhausted"
    wait(w, 100)
    reconcile(w)
    w.obey()
    reconcile(w, 2)
    assert condition(w, "Failed").status == "True"
    assert "QuotaExhausted" in condition(w, "Failed").message


@pytest.mark.parametrize(("seen", "reason"), [("stuck", "SidecarCrashLoop"), ("lost", "NodeLost")])
def test_what_will_not_end_by_itself_is_ended(seen: str, reason: str) -> None:
    w = make_simulator()
    first = run(w, until(w, "sft"))
    observed = w.observe()
    jobs = tuple(replace(j, **{seen: "why"}) if j.name == first.name else j for j in observed.jobs)
    made = plan(w.cycle(), replace(observed, jobs=jobs), w.now)
    assert [(delete.name, delete.reason) for delete in made.deletes] == [(first.name, reason)]
    (sft,) = (found for found in made.status.stages if found.name == "sft")
    assert (sft.state, sft.message) == (AttemptState.TERMINATING, "why")


def test_a_queue_that_takes_its_quota_back() -> None:
    w = make_simulator(stages=[{"name": "sft", "timeoutSeconds": 1000, **GPU}])
    found = run(w, until(w, "sft"))
    wait(w, 300)
    simulator_events.requeue(w, 0, 0)
    reconcile(w)
    assert (record(w, "sft").state, record(w, "sft").run_seconds) == (AttemptState.PENDING, 300)
    wait(w, 5000)
    reconcile(w)
    run(w, found)
    wait(w, 400)
    made = reconcile(w)
    assert not made.deletes, "the time in the queue is no run time"
    assert made.requeue_after == 300
    succeed(w, found)
    reconcile(w)
    assert (record(w, "sft").run_seconds, record(w, "sft").attempt) == (700, 1)
    assert w.status.usage.gpu_seconds == 2800
    assert w.status.usage.wasted_gpu_seconds == 0


def test_a_run_that_nobody_saw_running_is_booked() -> None:
    w = make_simulator(stages=[{"name": "sft", **GPU}])
    found = until(w, "sft")
    reconcile(w)
    found.started = w.now
    wait(w, 50)
    fail(w, found, 1)
    reconcile(w)
    assert (w.status.usage.gpu_seconds, w.status.usage.wasted_gpu_seconds) == (200, 200)
