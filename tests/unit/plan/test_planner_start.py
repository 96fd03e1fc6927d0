"""What starts, when, and with what."""

from __future__ import annotations

from tests.support import simulator_events
from tests.support.simulator_helpers import (
    GPU,
    condition,
    finish,
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
from medgr2_operator.plan.planner import plan
from medgr2_operator.plan.scheduling import job_name
from medgr2_operator.plan.types import AttemptKey, Observed


def test_first_plan_starts_prepare_and_stores_the_intent() -> None:
    sim = make_simulator()
    planned = plan(sim.cycle(), sim.observe(), sim.now)
    (create,) = planned.creates
    assert create.key == AttemptKey(0, "prepare", "", 1)
    (intent,) = planned.status.stages
    assert (intent.state, intent.attempt, intent.job_name, intent.job_uid) == ("Pending", 1, create.name, "")
    assert intent.input_hash == create.request.input_hash
    assert create.request.grace_seconds == 300


def test_an_intent_is_carried_out_again_under_the_same_identity() -> None:
    sim = make_simulator()
    first = plan(sim.cycle(), sim.observe(), sim.now)
    sim.apply(first, sim.version, crash_after=1)
    again = plan(sim.cycle(), sim.observe(), sim.now)
    assert again.creates == first.creates
    assert again.status == first.status


def test_a_job_that_vanished_is_followed_by_the_next_attempt() -> None:
    sim = make_simulator()
    until(sim, "sft")
    reconcile(sim)
    first = job(sim, "sft")
    run(sim, first)
    simulator_events.vanish(sim, list(sim.jobs).index(first.name), 0)
    reconcile(sim)
    assert record(sim, "sft").state is AttemptState.GONE
    assert (record(sim, "sft").infra_restarts, sim.status.usage.infra_restarts) == (1, 1)
    wait(sim, 10)
    reconcile(sim)
    assert job(sim, "sft").key.attempt == 2


def test_nothing_starts_beside_a_live_pod() -> None:
    sim = make_simulator()
    first = run(sim, until(sim, "sft"))
    simulator_events.vanish(sim, list(sim.jobs).index(first.name), 1)  # its pod outlives it
    reconcile(sim, 2)
    assert record(sim, "sft").state is AttemptState.TERMINATING
    wait(sim, 3600)
    reconcile(sim, 2)
    assert "sft" not in {j.key.name for j in sim.jobs.values()}
    simulator_events.end_pod(sim, 0, 1)
    reconcile(sim)
    assert record(sim, "sft").reason == "JobVanished"
    wait(sim, 60)
    reconcile(sim)
    assert job(sim, "sft").key.attempt == 2


def test_generate_and_training_run_side_by_side_up_to_the_limit() -> None:
    sim = make_simulator(iterations=2)
    until(sim, "sft", 1)
    reconcile(sim)
    assert live(sim) == {"sft@1", "generate@2"}
    narrow = make_simulator(iterations=2, maxParallelStages=1)
    until(narrow, "sft", 1)
    reconcile(narrow)
    assert live(narrow) == {"sft@1"}


def test_the_request_names_its_inputs() -> None:
    sim = make_simulator()
    request = until(sim, "grpo").request
    assert set(request.inputs) == {"prepare", "curate-1", "sft", "generate-1", "reward"}
    sft = request.inputs["sft"]
    assert sft.path == f"artifacts/sft/{record(sim, 'sft').input_hash}"
    assert sft.output_digest == record(sim, "sft").output_digest


def test_only_trainings_are_followed() -> None:
    sim = make_simulator(tracking={"mlflow": {}})
    assert until(sim, "curate").request.tracking is None
    followed = until(sim, "sft").request.tracking
    assert followed is not None
    assert followed.mlflow is not None


def test_a_reward_model_that_was_not_promoted_is_not_used() -> None:
    sim = make_simulator(iterations=2)
    succeed(sim, until(sim, "reward", 1), promoted=False)
    assert until(sim, "score", 2).request.inputs["reward"].iteration == 0
    assert sim.status.models.reward is not None
    assert sim.status.models.reward.iteration == 0


def test_a_policy_that_is_not_better_than_what_it_came_from_does_not_go_on() -> None:
    sim = make_simulator(iterations=2, policy={"initFrom": "Previous"})
    succeed(sim, until(sim, "grpo", 1), promoted=False, message="sft goes on: grpo is worse")
    reconcile(sim)
    assert record(sim, "grpo").message == "sft goes on: grpo is worse"
    assert until(sim, "evaluategrpo", 1).request.inputs["grpo"].stage == "grpo", "measured all the same"
    for stage, iteration in (("relabel", 1), ("sft", 2)):
        policy = until(sim, stage, iteration).request.inputs["policy"]
        assert (policy.stage, policy.iteration) == ("sft", 1)
    assert sim.status.models.policy is not None
    assert (sim.status.models.policy.stage, sim.status.models.policy.iteration) == ("sft", 1)
    succeed(sim, until(sim, "grpo", 2), promoted=True)
    reconcile(sim)
    assert sim.status.models.policy is not None
    assert (sim.status.models.policy.stage, sim.status.models.policy.iteration) == ("grpo", 2)


def test_a_reward_model_whose_promotion_is_not_told_is_used() -> None:
    sim = make_simulator(iterations=2)
    succeed(sim, until(sim, "reward", 1), promoted=None)
    assert until(sim, "score", 2).request.inputs["reward"].iteration == 1


def test_shards_and_gpus() -> None:
    sim = make_simulator(stages=[{"name": "generate", "shards": 4, **GPU}])
    reconcile(sim)
    succeed(sim, job(sim, "prepare", 0))
    planned = plan(sim.cycle(), sim.observe(), sim.now)
    create = next(c for c in planned.creates if c.key.name == "generate")
    assert create.shards == 4
    assert next(r for r in planned.status.stages if r.name == "generate").gpus == 16


def test_workspace_that_is_not_ready_starts_nothing() -> None:
    sim = make_simulator()
    planned = plan(sim.cycle(), Observed(workspace_ready=False, workspace_message="claim data is Pending"), sim.now)
    assert not planned.creates
    ready = next(c for c in planned.status.conditions if c.type == "WorkspaceReady")
    assert (ready.status, ready.message) == ("False", "claim data is Pending")


def test_nothing_starts_while_the_cycle_is_deleted() -> None:
    sim = make_simulator()
    cycle = sim.cycle()
    gone = cycle.metadata.model_copy(update={"deletion_timestamp": "2026-01-01T00:00:00Z"})
    planned = plan(cycle.model_copy(update={"metadata": gone}), sim.observe(), sim.now)
    assert (planned.creates, planned.deletes) == ((), ())


def test_a_strangers_job_is_left_alone() -> None:
    sim = make_simulator()
    sim.foreign_jobs.add(job_name(sim.cycle().metadata.name, "uid-1", AttemptKey(0, "prepare", "", 1)))
    planned = reconcile(sim, 3)
    assert (planned.creates, planned.deletes) == ((), ())
    assert condition(sim, "NameConflict").status == "True"
    assert condition(sim, "Progressing").reason == "NameConflict"
    sim.foreign_jobs.clear()
    reconcile(sim)
    assert job(sim, "prepare", 0).key.attempt == 1
    assert condition(sim, "NameConflict").status == "False"


def test_a_status_restored_from_a_backup_repeats_no_attempt() -> None:
    sim = make_simulator()
    run(sim, until(sim, "sft"))
    kept = [r for r in sim.status.stages if r.name != "sft"]
    forgotten = sim.cycle().model_copy(update={"status": sim.status.model_copy(update={"stages": kept})})
    planned = plan(forgotten, sim.observe(), sim.now)
    assert [d.key.name for d in planned.deletes] == ["sft"], "nobody would read its result"
    sim.obey()
    job(sim, "prepare", 0)  # still there
    after = plan(forgotten, Observed(tuple(j for j in sim.observe().jobs if j.key.name != "sft")), sim.now)
    assert [c.key.attempt for c in after.creates if c.key.name == "sft"] == [1]


def test_a_checkpoint_is_asked_when_it_is_published_while_the_next_one_trains() -> None:
    sim = make_simulator(iterations=1)
    succeed(sim, until(sim, "sft"))
    reconcile(sim)
    assert {"grpo@1", "evaluate@1"} <= live(sim), "SFT's while GRPO trains"
    succeed(sim, job(sim, "evaluate"))
    reconcile(sim)
    assert not {"evaluategrpo@1", "measure@1"} & live(sim), "of GRPO there is nothing to ask yet"
    succeed(sim, job(sim, "grpo"))
    reconcile(sim)
    assert "evaluategrpo@1" in live(sim)
    assert "measure@1" not in live(sim), "both are measured together"
    succeed(sim, job(sim, "evaluategrpo"))
    reconcile(sim)
    inputs = job(sim, "measure").request.inputs
    assert {role: ref.stage for role, ref in inputs.items()} == {
        "prepare": "prepare", "evaluate": "evaluate", "evaluategrpo": "evaluategrpo",
    }  # fmt: skip


def test_both_checkpoints_are_asked_with_the_settings_of_evaluate_unless_there_are_others() -> None:
    sim = make_simulator(iterations=1, stages=[{"name": "evaluate", "shards": 4, **GPU}])
    for name in ("evaluate", "evaluategrpo"):
        assert until(sim, name).request.parameters["shards"] == 4
        assert record(sim, name).gpus == 16
    sim = make_simulator(
        iterations=1, stages=[{"name": "evaluate", "shards": 4}, {"name": "evaluategrpo", "shards": 2}]
    )
    assert until(sim, "evaluategrpo").request.parameters["shards"] == 2
    sim = make_simulator(iterations=1, stages=[{"name": "evaluate", "enabled": False}])
    finish(sim)
    assert not {"evaluate", "evaluategrpo", "measure"} & {record.name for record in sim.status.stages}
