"""restartFrom: stages that run again."""

from __future__ import annotations

from tests.support import simulator_events
from tests.support.simulator_helpers import (
    condition,
    fail,
    finish,
    job,
    live,
    make_simulator,
    reconcile,
    record,
    restart,
    run,
    until,
)

from medgr2_api.status import Phase
from medgr2_operator.plan.types import AttemptKey


def test_restart_runs_a_stage_and_what_is_made_from_it_again() -> None:
    sim = make_simulator(iterations=2)
    finish(sim)
    kept = {str(s): record(sim, s, 1).output_digest for s in ("generate", "curate", "sft")}
    restart(sim, "grpo", 1, "again")
    reconcile(sim)
    assert sim.status.phase is Phase.RUNNING
    reset = {f"{r.name}@{r.iteration}" for r in sim.status.stages if r.token == "again"}
    assert "generate@2" not in reset
    assert {"grpo@1", "evaluategrpo@1", "measure@1", "reward@1", "score@2", "sft@2", "report@2"} <= reset
    finish(sim)
    assert {str(s): record(sim, s, 1).output_digest for s in ("generate", "curate", "sft")} == kept
    assert job(sim, "grpo", 1).request.token == "again"
    assert sim.history.created[AttemptKey(1, "grpo", "again", 1)] == 1
    assert sim.status.restart_tokens == ["again"]
    planned = reconcile(sim)
    assert not planned.creates, "a token acts once"


def test_restart_changes_the_input_hash() -> None:
    sim = make_simulator()
    finish(sim)
    before = record(sim, "grpo").input_hash
    restart(sim, "grpo", 1, "a")
    finish(sim)
    assert record(sim, "grpo").input_hash != before


def test_restart_stops_what_runs_first() -> None:
    sim = make_simulator()
    sim_job = run(sim, until(sim, "sft"))
    restart(sim, "curate", 1, "a")
    planned = reconcile(sim)
    assert [(d.key, d.reason) for d in planned.deletes] == [(sim_job.key, "Superseded")]
    reconcile(sim, 3)
    assert live(sim) == {"curate@1"}
    simulator_events.finish_delete(sim, 0, 1)
    assert until(sim, "sft").key == AttemptKey(1, "sft", "a", 1)


def test_restart_of_what_waits_for_its_own_pod() -> None:
    sim = make_simulator()
    run(sim, until(sim, "sft"))
    restart(sim, "sft", 1, "a")
    planned = reconcile(sim, 3)
    assert not planned.creates, "the old attempt may still be writing"
    sim.obey()
    assert reconcile(sim).creates


def test_restart_reopens_a_failed_cycle() -> None:
    sim = make_simulator()
    fail(sim, run(sim, until(sim, "sft")), 65)
    reconcile(sim, 2)
    assert sim.status.phase is Phase.FAILED
    restart(sim, "sft", 1, "fixed")
    finish(sim)
    assert sim.status.phase is Phase.COMPLETE
    assert condition(sim, "Failed").status == "False"


def test_restart_forgets_the_scores_that_it_repeats() -> None:
    sim = make_simulator()
    finish(sim)
    assert {s.iteration for s in sim.status.scores} == {0, 1}
    restart(sim, "sft", 1, "a")
    reconcile(sim)
    assert {s.iteration for s in sim.status.scores} == {0}


def test_restart_before_anything_ran_marks_the_stage() -> None:
    sim = make_simulator()
    restart(sim, "sft", 1, "mine")
    assert until(sim, "sft").request.token == "mine"


def test_restart_of_a_stage_that_is_not_there_is_told_once() -> None:
    sim = make_simulator(stages=[{"name": "grpo", "enabled": False}])
    finish(sim)
    restart(sim, "grpo", 1, "a")
    assert [e.reason for e in reconcile(sim).events] == ["RestartIgnored"]
    assert not reconcile(sim).events
    assert sim.status.phase is Phase.COMPLETE
