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
from medgr2_operator.plan.planner import plan
from medgr2_operator.plan.types import JobState


def test_suspend_and_resume() -> None:
    w = make_simulator()
    run(w, until(w, "sft"))
    wait(w, 100)
    edit(w, suspend=True)
    made = reconcile(w)
    assert [(d.key.name, d.reason) for d in made.deletes] == [("sft", "Suspended")]
    assert (w.status.phase, condition(w, "Suspended").status) == (Phase.SUSPENDED, "True")
    w.obey()
    reconcile(w, 2)
    stopped = record(w, "sft")
    assert (stopped.state, stopped.reason) == (AttemptState.GONE, "Suspended")
    assert (stopped.retries, stopped.infra_restarts) == (0, 0)
    edit(w, suspend=False)
    (create,) = reconcile(w).creates
    assert (create.key.attempt, create.resumes) == (2, True)


def test_the_deadline_stands_still_while_suspended() -> None:
    w = make_simulator(activeDeadlineSeconds=1000)
    assert reconcile(w).requeue_after == 1000
    wait(w, 400)
    edit(w, suspend=True)
    reconcile(w)
    wait(w, 100_000)
    edit(w, suspend=False)
    w.obey()
    reconcile(w, 3)
    wait(w, 599)
    reconcile(w)
    assert w.status.phase is Phase.RUNNING
    wait(w, 1)
    reconcile(w)
    w.obey()
    reconcile(w, 2)
    assert condition(w, "Failed").reason == "DeadlineExceeded"


def test_an_intent_of_a_suspended_cycle_is_given_up() -> None:
    w = make_simulator()
    w.apply(plan(w.cycle(), w.observe(), w.now), w.version, crash_after=1)
    edit(w, suspend=True)
    reconcile(w, 2)
    assert record(w, "prepare", 0).state is AttemptState.GONE
    edit(w, suspend=False)
    reconcile(w)
    assert job(w, "prepare", 0).key.attempt == 2


def test_pause_and_approve() -> None:
    w = make_simulator(pauseBefore=["sft"])
    for _ in range(12):
        reconcile(w)
        for found in list(w.jobs.values()):
            if found.state is JobState.QUEUED:
                succeed(w, found)
    assert w.status.phase is Phase.PAUSED
    assert condition(w, "Progressing").message == "waits for approval: sft@1"
    edit(w, approved=[StageRef(iteration=1, stage="sft")])
    reconcile(w)
    assert live(w) == {"sft@1"}


def test_a_stage_that_has_begun_is_not_paused() -> None:
    w = make_simulator()
    fail(w, run(w, until(w, "sft")), 1)
    edit(w, pause_before=["sft"])
    reconcile(w)
    wait(w, 60)
    assert reconcile(w).creates


def test_gpu_budget_suspends_until_it_is_raised() -> None:
    w = make_simulator(budget={"gpuHours": 1}, stages=[{"name": "sft", **GPU}])
    run(w, until(w, "sft"))
    assert reconcile(w).requeue_after == 900
    wait(w, 900)
    made = reconcile(w)
    assert [d.reason for d in made.deletes] == ["BudgetExceeded"]
    w.obey()
    reconcile(w)
    assert condition(w, "Suspended").reason == "BudgetExceeded"
    edit(w, budget=w.spec.budget.model_copy(update={"gpu_hours": 2}))
    assert reconcile(w).creates


def test_money_budget_fails_when_asked_to() -> None:
    w = make_simulator(iterations=2, budget={"generatorUSD": 0.5, "onExceeded": "Fail"})
    for _ in range(40):
        reconcile(w)
        w.obey()
        for found in list(w.jobs.values()):
            if found.state is JobState.QUEUED:
                succeed(w, found)
    assert condition(w, "Failed").reason == "BudgetExceeded"


def test_a_spent_money_budget_stops_nothing_that_is_free() -> None:
    w = make_simulator(budget={"generatorUSD": 0.5})
    finish(w)
    assert w.status.phase is Phase.COMPLETE
    assert w.status.usage.generator_usd == 0.5


def test_generate_is_told_the_whole_budget_and_nobody_else_is() -> None:
    w = make_simulator(iterations=2, budget={"generatorUSD": 4.5}, stages=[{"name": "generate", "shards": 2}])
    assert until(w, "generate", 1).request.generator_budget_usd == 4.5
    succeed(w, job(w, "generate", 1))
    assert until(w, "sft", 1).request.generator_budget_usd is None
    assert until(w, "generate", 2).request.generator_budget_usd == 4.5


def test_what_all_attempts_paid_is_counted_once() -> None:
    w = make_simulator(budget={"generatorUSD": 4.5})
    for total in (0.2, 0.2, 0.7):
        found = run(w, until(w, "generate", 1))
        w.finish(found, 1, "", StageResult(exit_code=1, usage={"generatorUSD": total}))
        w.release(found, linger=False)
        reconcile(w)
        assert w.status.usage.generator_usd == pytest.approx(total)
        wait(w, 600)
    succeed(w, until(w, "generate", 1))
    reconcile(w)
    assert w.status.usage.generator_usd == pytest.approx(0.7), "its own account, 0.5, is less than it told before"


def _spend_all(w: PlannerSimulator) -> None:
    found = run(w, until(w, "generate", 1))
    told = StageResult(exit_code=75, reason="BudgetSpent", message="4.4 of 4.5", usage={"generatorUSD": 4.4})
    w.finish(found, 75, "", told)
    w.release(found, linger=False)
    reconcile(w)
    w.obey()
    reconcile(w)


def test_a_stage_that_cannot_pay_its_next_question_suspends_the_cycle_until_the_budget_is_raised() -> None:
    w = make_simulator(budget={"generatorUSD": 4.5})
    _spend_all(w)
    assert condition(w, "Suspended").reason == "BudgetExceeded"
    assert "4.40 of 4.5" in condition(w, "Suspended").message
    assert w.status.usage.app_retries == w.status.usage.infra_restarts == 0
    wait(w, 3600)
    assert not reconcile(w).creates
    edit(w, budget=w.spec.budget.model_copy(update={"generator_usd": 9}))
    (made,) = reconcile(w).creates
    assert (made.key.attempt, made.request.generator_budget_usd) == (2, 9)


def test_a_stage_that_cannot_pay_its_next_question_fails_the_cycle_when_asked_to() -> None:
    w = make_simulator(budget={"generatorUSD": 4.5, "onExceeded": "Fail"})
    _spend_all(w)
    assert condition(w, "Failed").reason == "BudgetExceeded"


def test_while_a_pod_may_still_pay_no_other_iteration_asks() -> None:
    for budget, waits in (({"generatorUSD": 4.5}, True), ({}, False)):
        w = make_simulator(iterations=2, budget=budget)
        found = run(w, until(w, "generate", 2))
        restart(w, "generate", 1, "again")
        reconcile(w, 2)
        again = [job for job in w.jobs.values() if job.key.token == "again"]
        assert bool(again) is not waits
        succeed(w, found)
        reconcile(w, 2)
        assert ("again", 1) in {(job.key.token, job.key.iteration) for job in w.jobs.values()}
