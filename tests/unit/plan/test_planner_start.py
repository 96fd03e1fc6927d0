"""What starts, when, and with what."""

from __future__ import annotations

from tests.support import simulator_events
from tests.support.simulator_helpers import (
    GPU,
    condition,
    job,
    live,
    make_simulator,
    reconcile,
    record,
    run,
    succeed,
    until,
    wait,
)

from medgr2_api.status import AttemptState
from medgr2_operator.plan.job_names import job_name
from medgr2_operator.plan.planner import plan
from medgr2_operator.plan.types import AttemptKey, Observed


def test_first_plan_starts_prepare_and_stores_the_intent() -> None:
    w = make_simulator()
    made = plan(w.cycle(), w.observe(), w.now)
    (create,) = made.creates
    assert create.key == AttemptKey(0, "prepare", "", 1)
    (intent,) = made.status.stages
    assert (intent.state, intent.attempt, intent.job_name, intent.job_uid) == ("Pending", 1, create.name, "")
    assert intent.input_hash == create.request.input_hash
    assert create.request.grace_seconds == 300


def test_an_intent_is_carried_out_again_under_the_same_identity() -> None:
    w = make_simulator()
    first = plan(w.cycle(), w.observe(), w.now)
    w.apply(first, w.version, crash_after=1)
    again = plan(w.cycle(), w.observe(), w.now)
    assert again.creates == first.creates
    assert again.status == first.status


def test_a_job_that_vanished_is_followed_by_the_next_attempt() -> None:
    w = make_simulator()
    until(w, "sft")
    reconcile(w)
    first = job(w, "sft")
    run(w, first)
    simulator_events.vanish(w, list(w.jobs).index(first.name), 0)
    reconcile(w)
    assert record(w, "sft").state is AttemptState.GONE
    assert (record(w, "sft").infra_restarts, w.status.usage.infra_restarts) == (1, 1)
    wait(w, 10)
    reconcile(w)
    assert job(w, "sft").key.attempt == 2


def test_nothing_starts_beside_a_live_pod() -> None:
    w = make_simulator()
    first = run(w, until(w, "sft"))
    simulator_events.vanish(w, list(w.jobs).index(first.name), 1)  # its pod outlives it
    reconcile(w, 2)
    assert record(w, "sft").state is AttemptState.TERMINATING
    wait(w, 3600)
    reconcile(w, 2)
    assert "sft" not in {j.key.name for j in w.jobs.values()}
    simulator_events.end_pod(w, 0, 1)
    reconcile(w)
    assert record(w, "sft").reason == "JobVanished"
    wait(w, 60)
    reconcile(w)
    assert job(w, "sft").key.attempt == 2


def test_generate_and_training_run_side_by_side_up_to_the_limit() -> None:
    w = make_simulator(iterations=2)
    until(w, "sft", 1)
    reconcile(w)
    assert live(w) == {"sft@1", "generate@2"}
    narrow = make_simulator(iterations=2, maxParallelStages=1)
    until(narrow, "sft", 1)
    reconcile(narrow)
    assert live(narrow) == {"sft@1"}


def test_the_request_names_its_inputs() -> None:
    w = make_simulator()
    request = until(w, "grpo").request
    assert set(request.inputs) == {"prepare", "curate", "sft", "candidates", "reward"}
    sft = request.inputs["sft"]
    assert sft.path == f"artifacts/sft/{record(w, 'sft').input_hash}"
    assert sft.output_digest == record(w, "sft").output_digest


def test_a_reward_model_that_was_not_promoted_is_not_used() -> None:
    w = make_simulator(iterations=2)
    succeed(w, until(w, "reward", 1), promoted=False)
    assert until(w, "score", 2).request.inputs["reward"].iteration == 0
    assert w.status.models.reward is not None
    assert w.status.models.reward.iteration == 0


def test_a_reward_model_whose_promotion_is_not_told_is_used() -> None:
    w = make_simulator(iterations=2)
    succeed(w, until(w, "reward", 1), promoted=None)
    assert until(w, "score", 2).request.inputs["reward"].iteration == 1


def test_shards_and_gpus() -> None:
    w = make_simulator(stages=[{"name": "generate", "shards": 4, **GPU}])
    reconcile(w)
    succeed(w, job(w, "prepare", 0))
    made = plan(w.cycle(), w.observe(), w.now)
    create = next(c for c in made.creates if c.key.name == "generate")
    assert create.shards == 4
    assert next(r for r in made.status.stages if r.name == "generate").gpus == 16


def test_workspace_that_is_not_ready_starts_nothing() -> None:
    w = make_simulator()
    made = plan(w.cycle(), Observed(workspace_ready=False, workspace_message="claim data is Pending"), w.now)
    assert not made.creates
    ready = next(c for c in made.status.conditions if c.type == "WorkspaceReady")
    assert (ready.status, ready.message) == ("False", "claim data is Pending")


def test_nothing_starts_while_the_cycle_is_deleted() -> None:
    w = make_simulator()
    cycle = w.cycle()
    gone = cycle.metadata.model_copy(update={"deletion_timestamp": "2026-01-01T00:00:00Z"})
    made = plan(cycle.model_copy(update={"metadata": gone}), w.observe(), w.now)
    assert (made.creates, made.deletes) == ((), ())


def test_a_strangers_job_is_left_alone() -> None:
    w = make_simulator()
    w.strangers.add(job_name(w.cycle().metadata.name, "uid-1", AttemptKey(0, "prepare", "", 1)))
    made = reconcile(w, 3)
    assert (made.creates, made.deletes) == ((), ())
    assert condition(w, "NameConflict").status == "True"
    assert condition(w, "Progressing").reason == "NameConflict"
    w.strangers.clear()
    reconcile(w)
    assert job(w, "prepare", 0).key.attempt == 1
    assert condition(w, "NameConflict").status == "False"


def test_a_status_restored_from_a_backup_repeats_no_attempt() -> None:
    w = make_simulator()
    run(w, until(w, "sft"))
    kept = [r for r in w.status.stages if r.name != "sft"]
    forgotten = w.cycle().model_copy(update={"status": w.status.model_copy(update={"stages": kept})})
    made = plan(forgotten, w.observe(), w.now)
    assert [d.key.name for d in made.deletes] == ["sft"], "nobody would read its result"
    w.obey()
    job(w, "prepare", 0)  # still there
    after = plan(forgotten, Observed(tuple(j for j in w.observe().jobs if j.key.name != "sft")), w.now)
    assert [c.key.attempt for c in after.creates if c.key.name == "sft"] == [1]
