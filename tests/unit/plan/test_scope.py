"""How far back a look reads."""

from __future__ import annotations

from tests.support.simulator_helpers import fail, finish, job, make_simulator, reconcile, restart, run, succeed, until

from medgr2_operator.plan.scope import oldest_iteration


def test_everything_is_read_at_first() -> None:
    assert oldest_iteration(make_simulator(iterations=5).cycle()) == 0


def test_two_iterations_are_kept_in_sight() -> None:
    w = make_simulator(iterations=4)
    until(w, "report", 4)
    assert oldest_iteration(w.cycle()) == 3
    finish(w)
    assert oldest_iteration(w.cycle()) == 3


def test_a_stage_that_has_not_succeeded_keeps_its_iteration_in_sight() -> None:
    w = make_simulator(iterations=5)
    evaluate = run(w, until(w, "evaluate", 1))
    for _ in range(60):
        for found in list(w.jobs.values()):
            if found is not evaluate and found.state not in ("Succeeded", "Failed"):
                succeed(w, found)
        reconcile(w)
    assert max(found.key.iteration for found in w.jobs.values()) >= 3, "the loop went on without it"
    assert oldest_iteration(w.cycle()) == 1
    fail(w, evaluate, 75)
    reconcile(w)
    assert oldest_iteration(w.cycle()) == 1
    assert job(w, "evaluate", 1).key.attempt == 1


def test_a_restart_opens_any_iteration_again() -> None:
    w = make_simulator(iterations=4)
    finish(w)
    restart(w, "sft", 1, "again")
    assert oldest_iteration(w.cycle()) == 0
    reconcile(w)
    assert oldest_iteration(w.cycle()) == 1
