"""How far back the planner has to see."""

from __future__ import annotations

from tests.support.simulator_helpers import fail, finish, job, make_simulator, reconcile, restart, run, succeed, until

from medgr2_operator.plan.observation_index import oldest_relevant_iteration


def test_everything_is_read_at_first() -> None:
    assert oldest_relevant_iteration(make_simulator(iterations=5).cycle()) == 0


def test_two_iterations_are_kept_in_sight() -> None:
    sim = make_simulator(iterations=4)
    until(sim, "report", 4)
    assert oldest_relevant_iteration(sim.cycle()) == 3
    finish(sim)
    assert oldest_relevant_iteration(sim.cycle()) == 3


def test_a_stage_that_has_not_succeeded_keeps_its_iteration_in_sight() -> None:
    sim = make_simulator(iterations=5)
    evaluate = run(sim, until(sim, "evaluate", 1))
    for _ in range(60):
        for sim_job in list(sim.jobs.values()):
            if sim_job is not evaluate and sim_job.state not in ("Succeeded", "Failed"):
                succeed(sim, sim_job)
        reconcile(sim)
    assert max(sim_job.key.iteration for sim_job in sim.jobs.values()) >= 3, "the loop went on without it"
    assert oldest_relevant_iteration(sim.cycle()) == 1
    fail(sim, evaluate, 75)
    reconcile(sim)
    assert oldest_relevant_iteration(sim.cycle()) == 1
    assert job(sim, "evaluate", 1).key.attempt == 1


def test_a_restart_opens_any_iteration_again() -> None:
    sim = make_simulator(iterations=4)
    finish(sim)
    restart(sim, "sft", 1, "again")
    assert oldest_relevant_iteration(sim.cycle()) == 0
    reconcile(sim)
    assert oldest_relevant_iteration(sim.cycle()) == 1
