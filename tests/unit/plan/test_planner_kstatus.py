"""The conditions of kstatus, and that every condition is about the spec of now."""

from __future__ import annotations

import pytest
from tests.support.planner_simulator import PlannerSimulator
from tests.support.simulator_helpers import (
    condition,
    edit,
    fail,
    finish,
    make_simulator,
    reconcile,
    restart,
    run,
    succeed,
    until,
    wait,
)

from medgr2_api.scheduling import EarlyStopping
from medgr2_api.status import Phase
from medgr2_api.waiting import STALLED_AFTER, WaitingReason
from medgr2_operator.plan.planner import plan
from medgr2_operator.plan.types import JobState, Observed

KINDS = ("Ready", "Reconciling", "Stalled")
READY, RECONCILING, STALLED, NONE = "Ready", "Reconciling", "Stalled", ""


def holds(sim: PlannerSimulator) -> str:
    """Which of the three is true; empty: none. Never two."""
    true = [kind for kind in KINDS if condition(sim, kind).status == "True"]
    assert len(true) <= 1
    return "".join(true)


def ends(sim: PlannerSimulator) -> None:
    """What is asked to stop has stopped, and is seen."""
    sim.obey()
    reconcile(sim, 2)


def test_it_reconciles_until_it_is_complete() -> None:
    sim = make_simulator()
    reconcile(sim)
    assert holds(sim) == RECONCILING
    run(sim, until(sim, "sft"))
    assert holds(sim) == RECONCILING
    assert condition(sim, "Ready").reason == condition(sim, "Reconciling").reason == "StagesRunning"
    finish(sim)
    assert holds(sim) == READY
    assert condition(sim, "Ready").reason == "AllStagesSucceeded"


def test_a_failure_is_stalled_once_everything_has_stopped() -> None:
    sim = make_simulator(iterations=2)
    fail(sim, run(sim, until(sim, "sft", 1)), 78, message="no such model")
    reconcile(sim)
    assert (holds(sim), sim.status.phase) == (RECONCILING, Phase.RUNNING), "the generation is still to stop"
    ends(sim)
    assert (holds(sim), sim.status.phase) == (STALLED, Phase.FAILED)
    assert "no such model" in condition(sim, "Stalled").message


def test_a_lost_attempt_goes_on_by_itself() -> None:
    sim = make_simulator()
    fail(sim, run(sim, until(sim, "sft")), 143)
    reconcile(sim)
    assert holds(sim) == RECONCILING


@pytest.mark.parametrize("reason", [reason for reason in WaitingReason if reason.counts])
def test_a_wait_is_stalled_when_only_a_person_ends_it_and_it_lasts(reason: WaitingReason) -> None:
    sim = make_simulator()
    sim.waits_for = reason
    until(sim, "sft")
    reconcile(sim)
    assert holds(sim) == RECONCILING, "it may pass"
    wait(sim, STALLED_AFTER)
    reconcile(sim)
    assert holds(sim) == (STALLED if reason.stalls else RECONCILING)
    sim.waits_for = WaitingReason.STARTING
    reconcile(sim)
    assert holds(sim) == RECONCILING


def test_a_wait_stalls_nothing_while_another_stage_runs() -> None:
    sim = make_simulator(iterations=2)
    sim.waits_for = WaitingReason.IMAGE_PULL
    until(sim, "sft", 1)
    reconcile(sim)
    other = next(j for j in sim.jobs.values() if j.key.iteration == 2 and j.state is JobState.QUEUED)
    run(sim, other)
    wait(sim, 10 * STALLED_AFTER)
    reconcile(sim)
    assert holds(sim) == RECONCILING
    succeed(sim, other)


def test_a_queue_is_never_stalled() -> None:
    sim = make_simulator()
    reconcile(sim, 2)
    wait(sim, 1_000_000)
    reconcile(sim)
    assert holds(sim) == RECONCILING


def test_while_a_person_has_the_word_nothing_of_it_holds() -> None:
    sim = make_simulator(pauseBefore=["prepare"])
    reconcile(sim)
    assert holds(sim) == NONE
    edit(sim, pause_before=[])
    run(sim, until(sim, "sft"))
    edit(sim, suspend=True)
    reconcile(sim)
    assert holds(sim) == RECONCILING, "it is still to stop"
    ends(sim)
    assert (holds(sim), condition(sim, "Ready").reason) == (NONE, "Suspended")


def test_a_spent_budget_is_stalled() -> None:
    sim = make_simulator(budget={"generatorUSD": 0.5}, iterations=2)
    for _ in range(30):
        reconcile(sim)
        for sim_job in list(sim.jobs.values()):
            if sim_job.state is JobState.QUEUED and not sim_job.deleting:
                succeed(sim, sim_job)
        sim.obey()
    assert sim.status.phase is Phase.SUSPENDED
    assert (holds(sim), condition(sim, "Stalled").reason) == (STALLED, "BudgetExceeded")


def test_a_missing_claim_is_stalled_when_it_does_not_come() -> None:
    sim = make_simulator()
    missing = Observed(workspace_ready=False, workspace_message="no claim")
    for seconds, expected in ((0, RECONCILING), (STALLED_AFTER - 1, RECONCILING), (1, STALLED)):
        wait(sim, seconds)
        sim.apply(plan(sim.cycle(), missing, sim.now), sim.version)
        assert (holds(sim), sim.status.phase) == (expected, Phase.WAITING)
    assert (condition(sim, "Stalled").reason, condition(sim, "Stalled").message) == ("AwaitingVolume", "no claim")


def test_a_foreign_job_of_the_same_name_is_stalled() -> None:
    sim = make_simulator()
    create = plan(sim.cycle(), sim.observe(), sim.now).creates[0]
    sim.foreign_jobs.add(create.name)
    reconcile(sim, 2)
    assert (holds(sim), condition(sim, "Stalled").reason) == (STALLED, "NameConflict")


# -- generations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("succeeds", [True, False])
def test_an_edit_of_a_finished_cycle_is_observed_by_every_condition(succeeds: bool) -> None:
    sim = make_simulator()
    if succeeds:
        finish(sim)
    else:
        fail(sim, run(sim, until(sim, "sft")), 78)
        reconcile(sim, 2)
    before = sim.status
    edit(sim, early_stopping=EarlyStopping())
    reconcile(sim)
    assert sim.status.observed_generation == sim.generation == 2
    assert {c.observed_generation for c in sim.status.conditions} == {2}
    same = {"observed_generation": 1}
    assert [c.model_copy(update=same) for c in sim.status.conditions] == before.conditions, "else nothing changes"
    assert (sim.status.phase, sim.status.completion_time) == (before.phase, before.completion_time)


def test_an_end_of_an_earlier_version_gets_the_conditions_it_lacks() -> None:
    sim = make_simulator()
    finish(sim)
    old = [c for c in sim.status.conditions if c.type not in KINDS]
    sim.status = sim.status.model_copy(update={"conditions": old, "phase": Phase.INVALID})
    reconcile(sim)
    assert (holds(sim), sim.status.phase) == (READY, Phase.COMPLETE)


def test_at_every_moment_all_conditions_are_about_the_spec_of_now() -> None:
    sim = make_simulator(pauseBefore=["prepare"])
    reconcile(sim)
    for changes in ({"pause_before": []}, {"suspend": True}, {"suspend": False}, {"iterations": 2}):
        edit(sim, **changes)
        reconcile(sim)
        assert {c.observed_generation for c in sim.status.conditions} == {sim.generation}
        ends(sim)
    finish(sim)
    restart(sim, "sft", 1, "again")
    reconcile(sim)
    assert {c.observed_generation for c in sim.status.conditions} == {sim.generation}
    assert holds(sim) == RECONCILING
