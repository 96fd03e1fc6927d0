"""How attempts end, and what comes of it: retries, backoff, collecting, deadlines, the books."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

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
from medgr2_api.waiting import WaitingReason
from medgr2_operator.plan.planner import plan
from medgr2_operator.plan.types import AttemptKey, JobState


@pytest.mark.parametrize("code", [2, 64, 65, 78])
def test_permanent_failure_fails_the_cycle_and_stops_the_rest(code: int) -> None:
    sim = make_simulator(iterations=2)
    until(sim, "sft", 1)
    reconcile(sim)
    other = run(sim, job(sim, "generate", 2))
    sim_job = run(sim, job(sim, "sft", 1))
    fail(sim, sim_job, code, reason="", message="row 7 of data/seed has no answer")
    planned = reconcile(sim)
    assert [(d.key.stage, d.reason) for d in planned.deletes] == [(other.key.stage, "CycleFailed")]
    assert condition(sim, "Failed").status == "False", "something still runs"
    sim.obey()
    reconcile(sim)
    assert condition(sim, "Failed").status == "True"
    assert "row 7" in condition(sim, "Failed").message
    assert sim.status.phase is Phase.FAILED


def test_retries_are_counted_apart_from_restarts() -> None:
    sim = make_simulator(failurePolicy={"maxRetries": 2, "maxInfraRestarts": 1})
    until(sim, "sft")
    for code, counts in ((1, (1, 0)), (143, (1, 1)), (1, (2, 1))):
        fail(sim, run(sim, job(sim, "sft")), code)
        reconcile(sim)
        assert (record(sim, "sft").retries, record(sim, "sft").infra_restarts) == counts
        wait(sim, 600)
        reconcile(sim)
    fail(sim, run(sim, job(sim, "sft")), 1)
    reconcile(sim, 2)
    assert record(sim, "sft").given_up
    assert sim.status.phase is Phase.FAILED
    assert (sim.status.usage.app_retries, sim.status.usage.infra_restarts) == (3, 1)


def test_backoff_and_its_wake_up() -> None:
    sim = make_simulator()
    fail(sim, run(sim, until(sim, "sft")), 1)
    planned = reconcile(sim)
    assert planned.requeue_after == 10
    wait(sim, 9)
    assert not reconcile(sim).creates
    wait(sim, 1)
    assert reconcile(sim).creates


def test_backoff_survives_a_clock_that_was_set_back() -> None:
    sim = make_simulator()
    fail(sim, run(sim, until(sim, "sft")), 1)
    reconcile(sim)
    wait(sim, -100_000)
    assert reconcile(sim).creates


def test_checkpoint_with_progress_counts_nothing_and_resumes() -> None:
    sim = make_simulator(failurePolicy={"maxInfraRestarts": 0})
    until(sim, "sft")
    for step in (10, 20, 30):
        wait(sim, 5)
        fail(sim, run(sim, job(sim, "sft")), 85, checkpoint_step=step)
        reconcile(sim)
        assert reconcile(sim).creates[0].resumes
    assert record(sim, "sft").infra_restarts == 0
    fail(sim, run(sim, job(sim, "sft")), 85, checkpoint_step=30)
    reconcile(sim)
    assert record(sim, "sft").given_up, "no progress: an infrastructure failure"


def test_success_without_a_result_is_collected_not_repeated() -> None:
    sim = make_simulator(stages=[{"name": "sft", **GPU}])
    sim_job = run(sim, until(sim, "sft"))
    succeed(sim, sim_job, readable=False)
    reconcile(sim)
    edit(
        sim,
        policy=sim.spec.policy.model_copy(update={"sft": sim.spec.policy.sft.model_copy(update={"num_epochs": 9.0})}),
    )
    planned = reconcile(sim)
    (create,) = planned.creates
    assert create.request.collect
    assert create.request.input_hash == sim_job.request.input_hash, "where it was published, whatever the spec says now"
    assert record(sim, "sft").gpus == 0
    assert (record(sim, "sft").retries, record(sim, "sft").infra_restarts) == (0, 0)
    succeed(sim, job(sim, "sft"))
    reconcile(sim)
    assert record(sim, "sft").state is AttemptState.SUCCEEDED
    assert not record(sim, "sft").reused


def test_collecting_that_finds_nothing_runs_the_stage_again() -> None:
    sim = make_simulator()
    succeed(sim, run(sim, until(sim, "sft")), readable=False)
    reconcile(sim, 2)
    fail(sim, run(sim, job(sim, "sft")), 75)
    reconcile(sim)
    wait(sim, 60)
    (create,) = reconcile(sim).creates
    assert not create.request.collect


def test_collecting_that_cannot_be_read_either_is_bounded() -> None:
    sim = make_simulator(failurePolicy={"maxInfraRestarts": 1})
    until(sim, "sft")
    for _ in range(3):
        reconcile(sim)
        succeed(sim, run(sim, job(sim, "sft")), readable=False)
        reconcile(sim)
        wait(sim, 600)
    reconcile(sim)
    assert sim.status.phase is Phase.FAILED


def test_reused_results_are_counted() -> None:
    sim = make_simulator()
    succeed(sim, until(sim, "sft"), reused=True)
    reconcile(sim)
    assert record(sim, "sft").reused
    assert sim.status.usage.reused_stages == 1


def test_earlier_jobs_go_and_the_newest_stays() -> None:
    sim = make_simulator()
    fail(sim, run(sim, until(sim, "sft")), 1)
    reconcile(sim)
    wait(sim, 60)
    planned = reconcile(sim)
    assert planned.creates
    assert not planned.deletes, "the next attempt has to be stored first"
    planned = reconcile(sim)
    assert [(d.key.attempt, d.reason) for d in planned.deletes] == [(1, "Superseded")]
    finish(sim)
    assert {j.key.stage for j in sim.jobs.values()} == {
        AttemptKey(r.iteration, r.name, "", 1).stage for r in sim.status.stages
    }


def test_timeout_is_an_application_failure() -> None:
    sim = make_simulator(stages=[{"name": "sft", "timeoutSeconds": 100}])
    run(sim, until(sim, "sft"))
    assert reconcile(sim).requeue_after == 100
    wait(sim, 100)
    planned = reconcile(sim)
    assert [d.reason for d in planned.deletes] == ["TimeoutExceeded"]
    sim.obey()
    reconcile(sim)
    assert (record(sim, "sft").retries, record(sim, "sft").reason) == (1, "TimeoutExceeded")


def test_pending_deadline_names_the_cause() -> None:
    sim = make_simulator(stages=[{"name": "sft", "pendingDeadlineSeconds": 100}])
    sim.waits_for = WaitingReason.UNSCHEDULABLE
    until(sim, "sft")
    reconcile(sim)
    assert condition(sim, "Progressing").reason == "Unschedulable"
    wait(sim, 100)
    reconcile(sim)
    sim.obey()
    reconcile(sim, 2)
    assert condition(sim, "Failed").status == "True"
    assert "Unschedulable" in condition(sim, "Failed").message


@pytest.mark.parametrize(("seen", "reason"), [("stuck", "SidecarCrashLoop"), ("lost", "NodeLost")])
def test_what_will_not_end_by_itself_is_ended(seen: str, reason: str) -> None:
    sim = make_simulator()
    first = run(sim, until(sim, "sft"))
    observed = sim.observe()
    jobs = tuple(replace(j, **{seen: "why"}) if j.name == first.name else j for j in observed.jobs)
    planned = plan(sim.cycle(), replace(observed, jobs=jobs), sim.now)
    assert [(delete.name, delete.reason) for delete in planned.deletes] == [(first.name, reason)]
    (sft,) = (stage for stage in planned.status.stages if stage.name == "sft")
    assert (sft.state, sft.message) == (AttemptState.TERMINATING, "why")


def test_a_queue_that_takes_its_quota_back() -> None:
    sim = make_simulator(stages=[{"name": "sft", "timeoutSeconds": 1000, **GPU}])
    sim_job = run(sim, until(sim, "sft"))
    wait(sim, 300)
    simulator_events.requeue(sim, 0, 0)
    reconcile(sim)
    assert (record(sim, "sft").state, record(sim, "sft").run_seconds) == (AttemptState.PENDING, 300)
    wait(sim, 5000)
    reconcile(sim)
    run(sim, sim_job)
    wait(sim, 400)
    planned = reconcile(sim)
    assert not planned.deletes, "the time in the queue is no run time"
    assert planned.requeue_after == 300
    succeed(sim, sim_job)
    reconcile(sim)
    assert (record(sim, "sft").run_seconds, record(sim, "sft").attempt) == (700, 1)
    assert sim.status.usage.gpu_seconds == 2800
    assert sim.status.usage.wasted_gpu_seconds == 0


def test_a_run_that_nobody_saw_running_is_booked() -> None:
    sim = make_simulator(stages=[{"name": "sft", **GPU}])
    sim_job = until(sim, "sft")
    reconcile(sim)
    sim_job.started = sim.now
    wait(sim, 50)
    fail(sim, sim_job, 1)
    reconcile(sim)
    assert (sim.status.usage.gpu_seconds, sim.status.usage.wasted_gpu_seconds) == (200, 200)


@pytest.mark.parametrize("code", [0, 1])
def test_a_job_that_outlives_its_work_is_deleted_once_its_end_is_stored(code: int) -> None:
    sim = make_simulator()
    first = run(sim, until(sim, "sft"))
    observed = sim.observe()
    result = sim.publish(first) if code == 0 else None
    end = {"state": JobState.FAILED if code else JobState.SUCCEEDED, "exit_code": code, "result": result}
    jobs = tuple(replace(j, **end, left_over="istio") if j.name == first.name else j for j in observed.jobs)
    planned = plan(sim.cycle(), replace(observed, jobs=jobs), sim.now)
    (sft,) = (stage for stage in planned.status.stages if stage.name == "sft")
    assert sft.state is (AttemptState.FAILED if code else AttemptState.SUCCEEDED)
    assert [(delete.name, delete.reason) for delete in planned.deletes] == [(first.name, "SidecarStillRuns")]


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_nodes_clock_may_be_wrong_by_hours(hours: int) -> None:
    sim = make_simulator(stages=[{"name": "sft", "timeoutSeconds": 1000, **GPU}], budget={"gpuHours": 8})
    first = until(sim, "sft")
    run(sim, first)
    first.started = sim.now + timedelta(hours=hours)
    wait(sim, 10)
    assert reconcile(sim).deletes == ()
    assert record(sim, "sft").state is AttemptState.RUNNING
    used = sim.status.usage.gpu_seconds
    wait(sim, 90)
    succeed(sim, first)
    first.finished = sim.now + timedelta(hours=hours)
    reconcile(sim)
    assert record(sim, "sft").state is AttemptState.SUCCEEDED
    assert sim.status.usage.gpu_seconds - used <= 100 * record(sim, "sft").gpus
    assert record(sim, "sft").completion_time <= sim.now
    assert condition(sim, "Suspended").status == "False"


@pytest.mark.parametrize("hours", [-5, 5])
def test_so_it_may_when_work_begins_and_ends_between_two_looks(hours: int) -> None:
    sim = make_simulator(stages=[{"name": "sft", **GPU}])
    first = until(sim, "sft")
    wait(sim, 100)
    first.started = sim.now + timedelta(hours=hours)
    succeed(sim, first)
    first.finished = first.started + timedelta(seconds=50)
    reconcile(sim)
    assert 0 <= sim.status.usage.gpu_seconds <= 100 * record(sim, "sft").gpus
