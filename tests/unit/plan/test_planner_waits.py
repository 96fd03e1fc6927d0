"""What stages wait for: told in records, conditions, summary and events; and which time counts against a deadline."""

from __future__ import annotations

from datetime import timedelta

import pytest
from tests.support import simulator_events
from tests.support.planner_simulator import PlannerSimulator
from tests.support.simulator_helpers import (
    GPU,
    condition,
    edit,
    fail,
    finish,
    job,
    live,
    make_simulator,
    reconcile,
    record,
    restart,
    run,
    succeed,
    until,
    wait,
)

from medgr2_api.scheduling import StageRef, StageSettings
from medgr2_api.status import AttemptState, Phase
from medgr2_api.waiting import WaitingReason
from medgr2_operator.plan.types import JobState, Refusal

R = WaitingReason
APPROVED = [StageRef(iteration=1, stage="sft")]


def told(sim: PlannerSimulator) -> tuple[Phase, str, str]:
    """Phase, and status and reason of Progressing."""
    progressing = condition(sim, "Progressing")
    return sim.status.phase, progressing.status, progressing.reason


def until_paused(sim: PlannerSimulator) -> None:
    """Everything that is not the generation of iteration 2 succeeds until sft@1 waits for a person."""
    for _ in range(20):
        reconcile(sim)
        if any(stage.state is AttemptState.AWAITING_APPROVAL for stage in sim.status.stages):
            return
        for sim_job in list(sim.jobs.values()):
            if sim_job.state is JobState.QUEUED and sim_job.key.iteration < 2:
                succeed(sim, sim_job)
    raise AssertionError(live(sim))


def test_a_stage_that_waits_for_a_person_says_so_while_another_runs() -> None:
    sim = make_simulator(iterations=2, pauseBefore=["sft"])
    until_paused(sim)
    run(sim, job(sim, "generate", 2))
    waits = record(sim, "sft")
    assert (waits.state, waits.attempt, waits.waiting) == (AttemptState.AWAITING_APPROVAL, 0, R.AWAITING_APPROVAL)
    assert waits.pending_since == sim.now
    approval = condition(sim, "AwaitingApproval")
    assert (approval.status, approval.message) == ("True", "sft@1")
    assert told(sim) == (Phase.RUNNING, "True", "StagesRunning")
    assert condition(sim, "Progressing").message == "generate@2; waiting for approval: sft@1"
    assert sim.status.summary.startswith("2/2 generate 0%, sft@1 AwaitingApproval · ")
    assert not reconcile(sim).events, "it is reported once"
    edit(sim, approved=APPROVED)
    reconcile(sim)
    assert record(sim, "sft").state is AttemptState.PENDING
    assert condition(sim, "AwaitingApproval").status == "False"


def test_waiting_for_a_person_is_reported() -> None:
    sim = make_simulator(pauseBefore=["prepare"])
    events = [(event.type, event.reason, event.message) for event in reconcile(sim).events]
    assert ("Normal", "AwaitingApproval", "prepare@0: waiting for approval") in events


@pytest.mark.parametrize("how", ["not asked any more", "restarted before it", "suspended", "failed"])
def test_who_no_longer_waits_for_a_person_does_not_say_so(how: str) -> None:
    sim = make_simulator(iterations=2, pauseBefore=["sft"], maxParallelStages=1, failurePolicy={"maxRetries": 0})
    until_paused(sim)
    reconcile(sim)
    if how == "not asked any more":
        edit(sim, pause_before=[])
    elif how == "restarted before it":
        restart(sim, "prepare", 0, "again")
    elif how == "suspended":
        edit(sim, suspend=True)
    else:
        fail(sim, job(sim, "generate", 2), 78)
    reconcile(sim)
    waits = [stage for stage in sim.status.stages if stage.waiting is R.AWAITING_APPROVAL]
    assert bool(waits) is (how == "suspended"), "what is suspended may be approved meanwhile"


def test_a_stage_that_is_taken_out_while_it_waits_for_a_person_is_forgotten() -> None:
    sim = make_simulator(pauseBefore=["report"])
    for _ in range(20):
        reconcile(sim)
        for sim_job in list(sim.jobs.values()):
            if sim_job.state is JobState.QUEUED:
                succeed(sim, sim_job)
    assert sim.status.phase is Phase.PAUSED
    edit(sim, stages=[StageSettings(name="report", enabled=False)])
    finish(sim)
    assert not [stage for stage in sim.status.stages if stage.name == "report"]
    assert condition(sim, "AwaitingApproval").status == "False"


# -- deadlines ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [R.AWAITING_QUOTA, R.SCHEDULING_GATED])
def test_time_in_a_queue_counts_against_no_deadline(held: WaitingReason) -> None:
    sim = make_simulator(pendingDeadlineSeconds=100, activeDeadlineSeconds=100_000)
    sim.waits_for = held
    until(sim, "sft")
    reconcile(sim)
    wait(sim, 30 * 86_400)
    reconcile(sim)
    assert record(sim, "sft").state is AttemptState.PENDING
    assert (sim.status.active_since, sim.status.phase) == (None, Phase.WAITING)
    assert reconcile(sim).requeue_after is None, "nothing is due that stands still"
    sim.waits_for = R.UNSCHEDULABLE
    assert reconcile(sim).requeue_after == 100, "from now on it counts"
    assert sim.status.active_since == sim.now
    wait(sim, 60)
    reconcile(sim)
    sim.waits_for = held
    reconcile(sim)
    wait(sim, 86_400)
    reconcile(sim)
    sim.waits_for = R.IMAGE_PULL
    assert reconcile(sim).requeue_after == 40, "a queue between does not start it anew"
    wait(sim, 40)
    planned = reconcile(sim)
    assert [delete.reason for delete in planned.deletes] == ["PendingDeadlineExceeded"]
    assert record(sim, "sft").message == "not started in 100 s: ImagePull"


def test_a_wait_after_a_run_has_the_whole_deadline() -> None:
    sim = make_simulator(pendingDeadlineSeconds=100)
    sim.waits_for = R.UNSCHEDULABLE
    sim_job = until(sim, "sft")
    wait(sim, 90)
    reconcile(sim)
    run(sim, sim_job)
    wait(sim, 500)
    simulator_events.requeue(sim, 0, 0)
    assert reconcile(sim).requeue_after == 100


@pytest.mark.parametrize("known", [True, False], ids=["its pod is still there", "its pod is gone"])
def test_a_run_that_a_queue_ended_lasted_until_its_pod_ended(known: bool) -> None:
    sim = make_simulator(pendingDeadlineSeconds=1000, stages=[{"name": "sft", **GPU}])
    sim_job = until(sim, "sft")
    reconcile(sim)
    run(sim, sim_job)
    reconcile(sim)
    wait(sim, 500)
    simulator_events.requeue(sim, 0, 0)
    ended, sim_job.finished = sim.now, sim_job.finished if known else None
    wait(sim, 50)
    reconcile(sim)
    waits = record(sim, "sft")
    assert (waits.run_seconds, sim.status.usage.gpu_seconds) == ((500, 2000) if known else (550, 2200))
    assert waits.pending_since == (ended if known else sim.now)


def test_a_person_takes_no_time_of_the_deadline() -> None:
    sim = make_simulator(pauseBefore=["sft"], activeDeadlineSeconds=1000)
    until_paused(sim)
    wait(sim, 1_000_000)
    reconcile(sim, 2)
    assert told(sim) == (Phase.PAUSED, "False", "AwaitingApproval")
    edit(sim, approved=APPROVED)
    reconcile(sim)
    assert live(sim) == {"sft@1"}


def test_what_runs_beside_one_that_waits_takes_time_of_the_deadline() -> None:
    sim = make_simulator(iterations=2, pauseBefore=["sft"], activeDeadlineSeconds=1000)
    until_paused(sim)
    run(sim, job(sim, "generate", 2))
    wait(sim, 1001)
    reconcile(sim)
    sim.obey()
    reconcile(sim, 2)
    assert condition(sim, "Failed").reason == "DeadlineExceeded"


# -- refusals ----------------------------------------------------------------------------------------------------------


def refuse(sim: PlannerSimulator, name: str, message: str, *, final: bool = False) -> None:
    """The API server takes no Job of this stage's newest attempt."""
    planned = [create for create in sim.make_plan(sim.cycle(), sim.observe()).creates if create.key.name == name]
    sim.refusals = tuple(Refusal(create.key, message, final) for create in planned)


def test_a_refused_job_is_told_and_tried_again_until_the_deadline() -> None:
    sim = make_simulator(pendingDeadlineSeconds=100)
    refuse(sim, "prepare", "exceeded quota: jobs")
    reconcile(sim)
    planned = reconcile(sim)
    assert [(e.type, e.reason, e.message) for e in planned.events] == [
        ("Warning", "JobRefused", "prepare@0: exceeded quota: jobs")
    ]
    assert [create.key.attempt for create in planned.creates] == [1], "the same attempt again"
    assert told(sim) == (Phase.WAITING, "False", "JobRefused")
    assert "exceeded quota: jobs" in condition(sim, "Progressing").message
    assert sim.status.summary == "0/1 prepare JobRefused"
    wait(sim, 40)
    assert reconcile(sim).requeue_after == 60
    wait(sim, 60)
    reconcile(sim, 3)
    failed = condition(sim, "Failed")
    assert failed.status == "True"
    assert "not started in 100 s: JobRefused: exceeded quota: jobs" in failed.message
    assert not sim.history.created


def test_a_refused_job_that_is_taken_later_runs() -> None:
    sim = make_simulator()
    refuse(sim, "prepare", "busy")
    reconcile(sim, 2)
    sim.refusals = ()
    reconcile(sim)
    run(sim, job(sim, "prepare", 0))
    prepare = record(sim, "prepare", 0)
    assert (prepare.state, prepare.attempt, prepare.reason, prepare.message) == (AttemptState.RUNNING, 1, "", "")
    assert told(sim) == (Phase.RUNNING, "True", "StagesRunning")


def test_what_the_api_server_will_never_take_ends_the_stage() -> None:
    sim = make_simulator()
    refuse(sim, "prepare", "Job is invalid: spec.template.spec.containers[0].name", final=True)
    reconcile(sim, 2)
    prepare = record(sim, "prepare", 0)
    assert (prepare.state, prepare.reason, prepare.given_up) == (AttemptState.FAILED, "JobRefused", True)
    assert condition(sim, "Failed").message == (
        "prepare@0: JobRefused: Job is invalid: spec.template.spec.containers[0].name"
    )
    assert condition(sim, "Stalled").status == "True"


# -- what is told ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reason", [reason for reason in R if reason not in (R.AWAITING_APPROVAL, R.BACKOFF, R.STARTING)]
)
def test_every_reason_is_in_record_condition_summary_and_event(reason: WaitingReason) -> None:
    sim = make_simulator()
    sim.waits_for = reason
    sim_job = until(sim, "sft")
    planned = reconcile(sim)
    assert (record(sim, "sft").reason, record(sim, "sft").waiting) == (reason, reason)
    assert told(sim) == (Phase.WAITING, "False", str(reason))
    assert sim.status.summary.startswith(f"1/1 sft {reason} · ")
    (event,) = (event for event in planned.events if event.reason == reason)
    assert (event.type, event.stage) == ("Warning" if reason.stalls else "Normal", sim_job.key.stage)
    assert not reconcile(sim).events, "once"
    run(sim, sim_job)
    assert record(sim, "sft").waiting is None


def test_what_has_just_been_created_is_no_wait() -> None:
    sim = make_simulator()
    reconcile(sim)
    assert record(sim, "prepare", 0).reason == R.STARTING
    assert told(sim) == (Phase.RUNNING, "True", "StagesRunning")
    assert [event.reason for event in reconcile(sim).events if event.reason == R.STARTING] == []


def test_a_lost_attempt_waits_for_its_next_one() -> None:
    sim = make_simulator()
    fail(sim, run(sim, until(sim, "sft")), 137, reason="DisruptionTarget", message="preempted by ml/urgent")
    reconcile(sim)
    sft = record(sim, "sft")
    assert (sft.waiting, sft.reason) == (R.BACKOFF, "DisruptionTarget")
    assert told(sim) == (Phase.WAITING, "True", "Backoff")
    at = (sim.now + timedelta(seconds=10)).strftime("%H:%M:%S")
    assert condition(sim, "Progressing").message == (
        f"sft@1 will be retried at {at} UTC: DisruptionTarget preempted by ml/urgent"
    )
    assert sim.status.summary.startswith("1/1 sft Backoff · ")
    edit(sim, suspend=True)
    reconcile(sim)
    assert sim.status.summary.startswith("1/1 suspended · ")


def test_a_running_stage_that_lacks_a_pod_runs_and_says_so() -> None:
    sim = make_simulator()
    sim_job = run(sim, until(sim, "sft"))
    sim.also_waits[sim_job.name] = R.UNSCHEDULABLE
    planned = reconcile(sim)
    assert (record(sim, "sft").state, record(sim, "sft").waiting) == (AttemptState.RUNNING, R.UNSCHEDULABLE)
    assert told(sim) == (Phase.RUNNING, "True", "StagesRunning")
    assert condition(sim, "Progressing").message == "sft@1; waiting: sft@1: Unschedulable"
    assert "Unschedulable" in {event.reason for event in planned.events}
    sim.also_waits[sim_job.name] = R.SIDECAR_STILL_RUNS
    reconcile(sim)
    assert told(sim) == (Phase.WAITING, "False", "SidecarStillRuns"), "its work is over"
    assert sim.status.summary.startswith("1/1 sft SidecarStillRuns 0% · ")
