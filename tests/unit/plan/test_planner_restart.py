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
    w = make_simulator(iterations=2)
    finish(w)
    kept = {str(s): record(w, s, 1).output_digest for s in ("generate", "curate", "sft")}
    restart(w, "grpo", 1, "again")
    reconcile(w)
    assert w.status.phase is Phase.RUNNING
    reset = {f"{r.name}@{r.iteration}" for r in w.status.stages if r.token == "again"}
    assert "generate@2" not in reset
    assert {"grpo@1", "evaluate@1", "reward@1", "score@2", "sft@2", "report@2"} <= reset
    finish(w)
    assert {str(s): record(w, s, 1).output_digest for s in ("generate", "curate", "sft")} == kept
    assert job(w, "grpo", 1).request.token == "again"
    assert w.history.created[AttemptKey(1, "grpo", "again", 1)] == 1
    assert w.status.restart_tokens == ["again"]
    made = reconcile(w)
    assert not made.creates, "a token acts once"


def test_restart_changes_the_input_hash() -> None:
    w = make_simulator()
    finish(w)
    before = record(w, "grpo").input_hash
    restart(w, "grpo", 1, "a")
    finish(w)
    assert record(w, "grpo").input_hash != before


def test_restart_stops_what_runs_first() -> None:
    w = make_simulator()
    found = run(w, until(w, "sft"))
    restart(w, "curate", 1, "a")
    made = reconcile(w)
    assert [(d.key, d.reason) for d in made.deletes] == [(found.key, "Superseded")]
    reconcile(w, 3)
    assert live(w) == {"curate@1"}
    simulator_events.finish_delete(w, 0, 1)
    assert until(w, "sft").key == AttemptKey(1, "sft", "a", 1)


def test_restart_of_what_waits_for_its_own_pod() -> None:
    w = make_simulator()
    run(w, until(w, "sft"))
    restart(w, "sft", 1, "a")
    made = reconcile(w, 3)
    assert not made.creates, "the old attempt may still be writing"
    w.obey()
    assert reconcile(w).creates


def test_restart_reopens_a_failed_cycle() -> None:
    w = make_simulator()
    fail(w, run(w, until(w, "sft")), 65)
    reconcile(w, 2)
    assert w.status.phase is Phase.FAILED
    restart(w, "sft", 1, "fixed")
    finish(w)
    assert w.status.phase is Phase.COMPLETE
    assert condition(w, "Failed").status == "False"


def test_restart_forgets_the_scores_that_it_repeats() -> None:
    w = make_simulator()
    finish(w)
    assert {s.iteration for s in w.status.scores} == {0, 1}
    restart(w, "sft", 1, "a")
    reconcile(w)
    assert {s.iteration for s in w.status.scores} == {0}


def test_restart_before_anything_ran_marks_the_stage() -> None:
    w = make_simulator()
    restart(w, "sft", 1, "mine")
    assert until(w, "sft").request.token == "mine"


def test_restart_of_a_stage_that_is_not_there_is_told_once() -> None:
    w = make_simulator(stages=[{"name": "grpo", "enabled": False}])
    finish(w)
    restart(w, "grpo", 1, "a")
    assert [e.reason for e in reconcile(w).events] == ["RestartIgnored"]
    assert not reconcile(w).events
    assert w.status.phase is Phase.COMPLETE
