"""Suspending, pausing, and budgets."""

from __future__ import annotations

import pytest
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

from medgr2_api.scheduling import StageRef
from medgr2_api.stage_contract import StageResult
from medgr2_api.status import AttemptState, Phase
from medgr2_api.waiting import WaitingReason
from medgr2_operator.plan.planner import plan
from medgr2_operator.plan.types import JobState


def test_suspend_and_resume() -> None:
    sim = make_simulator()
    run(sim, until(sim, "sft"))
    wait(sim, 100)
    edit(sim, suspend=True)
    planned = reconcile(sim)
    assert [(d.key.name, d.reason) for d in planned.deletes] == [("sft", "Suspended")]
    assert (sim.status.phase, condition(sim, "Suspended").status) == (Phase.SUSPENDED, "True")
    sim.obey()
    reconcile(sim, 2)
    stopped = record(sim, "sft")
    assert (stopped.state, stopped.reason) == (AttemptState.GONE, "Suspended")
    assert (stopped.retries, stopped.infra_restarts) == (0, 0)
    edit(sim, suspend=False)
    (create,) = reconcile(sim).creates
    assert (create.key.attempt, create.resumes) == (2, True)


def test_the_deadline_stands_still_while_suspended() -> None:
    sim = make_simulator(activeDeadlineSeconds=1000)
    sim.waits_for = WaitingReason.UNSCHEDULABLE
    assert reconcile(sim).requeue_after == 1000
    wait(sim, 400)
    edit(sim, suspend=True)
    reconcile(sim)
    wait(sim, 100_000)
    edit(sim, suspend=False)
    sim.obey()
    reconcile(sim, 3)
    wait(sim, 599)
    reconcile(sim)
    assert sim.status.phase is Phase.WAITING
    wait(sim, 1)
    reconcile(sim)
    sim.obey()
    reconcile(sim, 2)
    assert condition(sim, "Failed").reason == "DeadlineExceeded"


def test_an_intent_of_a_suspended_cycle_is_given_up() -> None:
    sim = make_simulator()
    sim.apply(plan(sim.cycle(), sim.observe(), sim.now), sim.version, crash_after=1)
    edit(sim, suspend=True)
    reconcile(sim, 2)
    assert record(sim, "prepare", 0).state is AttemptState.GONE
    edit(sim, suspend=False)
    reconcile(sim)
    assert job(sim, "prepare", 0).key.attempt == 2


def test_pause_and_approve() -> None:
    sim = make_simulator(pauseBefore=["sft"])
    for _ in range(12):
        reconcile(sim)
        for sim_job in list(sim.jobs.values()):
            if sim_job.state is JobState.QUEUED:
                succeed(sim, sim_job)
    assert sim.status.phase is Phase.PAUSED
    assert condition(sim, "Progressing").message == "waiting for approval: sft@1"
    edit(sim, approved=[StageRef(iteration=1, stage="sft")])
    reconcile(sim)
    assert live(sim) == {"sft@1"}


def test_a_stage_that_has_begun_is_not_paused() -> None:
    sim = make_simulator()
    fail(sim, run(sim, until(sim, "sft")), 1)
    edit(sim, pause_before=["sft"])
    reconcile(sim)
    wait(sim, 60)
    assert reconcile(sim).creates


def test_gpu_budget_suspends_until_it_is_raised() -> None:
    sim = make_simulator(budget={"gpuHours": 1}, stages=[{"name": "sft", **GPU}])
    run(sim, until(sim, "sft"))
    assert reconcile(sim).requeue_after == 900
    wait(sim, 900)
    planned = reconcile(sim)
    assert [d.reason for d in planned.deletes] == ["BudgetExceeded"]
    sim.obey()
    reconcile(sim)
    assert condition(sim, "Suspended").reason == "BudgetExceeded"
    edit(sim, budget=sim.spec.budget.model_copy(update={"gpu_hours": 2}))
    assert reconcile(sim).creates


def test_money_budget_fails_when_asked_to() -> None:
    sim = make_simulator(iterations=2, budget={"generatorUSD": 0.5, "onExceeded": "Fail"})
    for _ in range(40):
        reconcile(sim)
        sim.obey()
        for sim_job in list(sim.jobs.values()):
            if sim_job.state is JobState.QUEUED:
                succeed(sim, sim_job)
    assert condition(sim, "Failed").reason == "BudgetExceeded"


def test_a_spent_money_budget_stops_nothing_that_is_free() -> None:
    sim = make_simulator(budget={"generatorUSD": 0.5})
    finish(sim)
    assert sim.status.phase is Phase.COMPLETE
    assert sim.status.usage.generator_usd == 0.5


def test_generate_is_told_the_whole_budget_and_nobody_else_is() -> None:
    sim = make_simulator(iterations=2, budget={"generatorUSD": 4.5}, stages=[{"name": "generate", "shards": 2}])
    assert until(sim, "generate", 1).request.generator_budget_usd == 4.5
    succeed(sim, job(sim, "generate", 1))
    assert until(sim, "sft", 1).request.generator_budget_usd is None
    assert until(sim, "generate", 2).request.generator_budget_usd == 4.5


def test_what_all_attempts_paid_is_counted_once() -> None:
    sim = make_simulator(budget={"generatorUSD": 4.5})
    for total in (0.2, 0.2, 0.7):
        sim_job = run(sim, until(sim, "generate", 1))
        sim.finish(sim_job, 1, "", StageResult(exit_code=1, usage={"generatorUSD": total}))
        sim.release(sim_job, linger=False)
        reconcile(sim)
        assert sim.status.usage.generator_usd == pytest.approx(total)
        wait(sim, 600)
    succeed(sim, until(sim, "generate", 1))
    reconcile(sim)
    assert sim.status.usage.generator_usd == pytest.approx(0.7), "its own account, 0.5, is less than it told before"


def _spend_all(sim: PlannerSimulator) -> None:
    sim_job = run(sim, until(sim, "generate", 1))
    result = StageResult(exit_code=75, reason="BudgetSpent", message="4.4 of 4.5", usage={"generatorUSD": 4.4})
    sim.finish(sim_job, 75, "", result)
    sim.release(sim_job, linger=False)
    reconcile(sim)
    sim.obey()
    reconcile(sim)


def test_a_stage_that_cannot_pay_its_next_question_suspends_the_cycle_until_the_budget_is_raised() -> None:
    sim = make_simulator(budget={"generatorUSD": 4.5})
    _spend_all(sim)
    assert condition(sim, "Suspended").reason == "BudgetExceeded"
    assert "4.40 of 4.5" in condition(sim, "Suspended").message
    assert sim.status.usage.app_retries == sim.status.usage.infra_restarts == 0
    wait(sim, 3600)
    assert not reconcile(sim).creates
    edit(sim, budget=sim.spec.budget.model_copy(update={"generator_usd": 9}))
    (create,) = [made for made in reconcile(sim).creates if made.key.name == "generate"]
    assert (create.key.attempt, create.request.generator_budget_usd) == (2, 9)


def test_a_stage_that_cannot_pay_its_next_question_fails_the_cycle_when_asked_to() -> None:
    sim = make_simulator(budget={"generatorUSD": 4.5, "onExceeded": "Fail"})
    _spend_all(sim)
    assert condition(sim, "Failed").reason == "BudgetExceeded"


def test_while_a_pod_may_still_pay_no_other_iteration_asks() -> None:
    for budget, waits in (({"generatorUSD": 4.5}, True), ({}, False)):
        sim = make_simulator(iterations=2, budget=budget)
        sim_job = run(sim, until(sim, "generate", 2))
        restart(sim, "generate", 1, "again")
        reconcile(sim, 2)
        again = [job for job in sim.jobs.values() if job.key.token == "again"]
        assert bool(again) is not waits
        succeed(sim, sim_job)
        reconcile(sim, 2)
        assert ("again", 1) in {(job.key.token, job.key.iteration) for job in sim.jobs.values()}
