"""The planner's rules one by one, in the same world as the random schedules."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.plan.bench import (
    condition,
    fail,
    finish,
    job,
    live,
    reconcile,
    record,
    run,
    succeed,
    until,
    wait,
    world,
)
from tests.unit.plan.world import World

from medgr2_api.scheduling import RestartFrom, StageRef
from medgr2_api.stages import Progress, StageName
from medgr2_api.status import AttemptState, CycleStatus, Phase
from medgr2_operator.plan.compact import LIMIT_BYTES, size
from medgr2_operator.plan.machine import plan
from medgr2_operator.plan.model import AttemptKey, JobState, Observed
from medgr2_operator.plan.names import job_name

GPU = {"resources": {"limits": {"nvidia.com/gpu": 4}}}


def edit(w: World, **changes: Any) -> None:
    w._set_spec(changes)


# -- starting ----------------------------------------------------------------------------------------------------------


def test_first_plan_starts_prepare_and_stores_the_intent() -> None:
    w = world()
    made = plan(w.cycle(), w.observe(), w.now)
    (create,) = made.creates
    assert create.key == AttemptKey(0, StageName.PREPARE, "", 1)
    (intent,) = made.status.stages
    assert (intent.state, intent.attempt, intent.job_name, intent.job_uid) == ("Pending", 1, create.name, "")
    assert intent.input_hash == create.request.input_hash
    assert create.request.grace_seconds == 300


def test_an_intent_is_carried_out_again_under_the_same_identity() -> None:
    w = world()
    first = plan(w.cycle(), w.observe(), w.now)
    w.apply(first, w.version, crash_after=1)
    again = plan(w.cycle(), w.observe(), w.now)
    assert again.creates == first.creates
    assert again.status == first.status


def test_a_job_that_vanished_is_followed_by_the_next_attempt() -> None:
    w = world()
    until(w, "sft")
    reconcile(w)
    first = job(w, "sft")
    run(w, first)
    w.vanish(list(w.jobs).index(first.name), 0)
    reconcile(w)
    assert record(w, "sft").state is AttemptState.GONE
    assert (record(w, "sft").infra_restarts, w.status.usage.infra_restarts) == (1, 1)
    wait(w, 10)
    reconcile(w)
    assert job(w, "sft").key.attempt == 2


def test_nothing_starts_beside_a_live_pod() -> None:
    w = world()
    first = run(w, until(w, "sft"))
    w.vanish(list(w.jobs).index(first.name), 1)  # its pod outlives it
    reconcile(w, 2)
    assert record(w, "sft").state is AttemptState.TERMINATING
    wait(w, 3600)
    reconcile(w, 2)
    assert "sft" not in {j.key.name for j in w.jobs.values()}
    w.end_pod(0, 1)
    reconcile(w)
    assert record(w, "sft").reason == "JobVanished"
    wait(w, 60)
    reconcile(w)
    assert job(w, "sft").key.attempt == 2


def test_a_cache_that_lags_starts_nothing_and_buries_nothing() -> None:
    w = world()
    run(w, until(w, "sft"))
    made = plan(w.cycle(), Observed(fresh=False), w.now)
    assert not made.creates
    assert made.needs_fresh
    assert [r.state for r in made.status.stages] == [r.state for r in w.status.stages]


def test_a_cache_is_good_enough_for_an_end() -> None:
    w = world()
    found = run(w, until(w, "sft"))
    succeed(w, found)
    made = plan(w.cycle(), replace(w.observe(), fresh=False), w.now)
    assert next(r for r in made.status.stages if r.name == "sft").state is AttemptState.SUCCEEDED
    assert made.needs_fresh
    assert not made.creates


def test_generate_and_training_run_side_by_side_up_to_the_limit() -> None:
    w = world(iterations=2)
    until(w, "sft", 1)
    reconcile(w)
    assert live(w) == {"sft@1", "generate@2"}
    narrow = world(iterations=2, maxParallelStages=1)
    until(narrow, "sft", 1)
    reconcile(narrow)
    assert live(narrow) == {"sft@1"}


def test_the_request_names_its_inputs() -> None:
    w = world()
    request = until(w, "grpo").request
    assert set(request.inputs) == {"prepare", "curate", "sft", "candidates", "reward"}
    sft = request.inputs["sft"]
    assert sft.path == f"artifacts/sft/{record(w, 'sft').input_hash}"
    assert sft.output_digest == record(w, "sft").output_digest


def test_a_reward_model_that_was_not_promoted_is_not_used() -> None:
    w = world(iterations=2)
    succeed(w, until(w, "reward", 1), promoted=False)
    assert until(w, "score", 2).request.inputs["reward"].iteration == 0
    assert w.status.models.reward is not None
    assert w.status.models.reward.iteration == 0


def test_a_reward_model_whose_promotion_is_not_told_is_used() -> None:
    w = world(iterations=2)
    succeed(w, until(w, "reward", 1), promoted=None)
    assert until(w, "score", 2).request.inputs["reward"].iteration == 1


def test_shards_and_gpus() -> None:
    w = world(stages=[{"name": "generate", "shards": 4, **GPU}])
    reconcile(w)
    succeed(w, job(w, "prepare", 0))
    made = plan(w.cycle(), w.observe(), w.now)
    create = next(c for c in made.creates if c.key.name is StageName.GENERATE)
    assert create.shards == 4
    assert next(r for r in made.status.stages if r.name == "generate").gpus == 16


def test_workspace_that_is_not_ready_starts_nothing() -> None:
    w = world()
    made = plan(w.cycle(), Observed(workspace_ready=False, workspace_message="claim data is Pending"), w.now)
    assert not made.creates
    ready = next(c for c in made.status.conditions if c.type == "WorkspaceReady")
    assert (ready.status, ready.message) == ("False", "claim data is Pending")


def test_nothing_starts_while_the_cycle_is_deleted() -> None:
    w = world()
    cycle = w.cycle()
    gone = cycle.metadata.model_copy(update={"deletion_timestamp": "2026-01-01T00:00:00Z"})
    made = plan(cycle.model_copy(update={"metadata": gone}), w.observe(), w.now)
    assert (made.creates, made.deletes) == ((), ())


def test_a_strangers_job_is_left_alone() -> None:
    w = world()
    w.strangers.add(job_name(w.cycle().metadata.name, "uid-1", AttemptKey(0, StageName.PREPARE, "", 1)))
    made = reconcile(w, 3)
    assert (made.creates, made.deletes) == ((), ())
    assert condition(w, "NameConflict").status == "True"
    assert condition(w, "Progressing").reason == "NameConflict"
    w.strangers.clear()
    reconcile(w)
    assert job(w, "prepare", 0).key.attempt == 1
    assert condition(w, "NameConflict").status == "False"


def test_stage_that_this_version_cannot_run_fails_the_cycle_at_once() -> None:
    generator = {"openAI": {"model": "m", "baseURL": "http://m/v1"}, "distillation": {"baseModel": "g"}}
    w = world(generator=generator)
    made = reconcile(w)
    assert not made.creates
    assert condition(w, "Failed").reason == "Unsupported"


def test_a_status_restored_from_a_backup_repeats_no_attempt() -> None:
    w = world()
    run(w, until(w, "sft"))
    kept = [r for r in w.status.stages if r.name != "sft"]
    forgotten = w.cycle().model_copy(update={"status": w.status.model_copy(update={"stages": kept})})
    made = plan(forgotten, w.observe(), w.now)
    assert [d.key.name for d in made.deletes] == ["sft"], "nobody would read its result"
    w._obey()
    job(w, "prepare", 0)  # still there
    after = plan(forgotten, Observed(tuple(j for j in w.observe().jobs if j.key.name != "sft")), w.now)
    assert [c.key.attempt for c in after.creates if c.key.name == "sft"] == [1]


# -- ends --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [2, 64, 65, 78])
def test_permanent_failure_fails_the_cycle_and_stops_the_rest(code: int) -> None:
    w = world(iterations=2)
    until(w, "sft", 1)
    reconcile(w)
    other = run(w, job(w, "generate", 2))
    found = run(w, job(w, "sft", 1))
    fail(w, found, code, reason="", message="row 7 of data/seed has no answer")
    made = reconcile(w)
    assert [(d.key.stage, d.reason) for d in made.deletes] == [(other.key.stage, "CycleFailed")]
    assert condition(w, "Failed").status == "False", "something still runs"
    w._obey()
    reconcile(w)
    assert condition(w, "Failed").status == "True"
    assert "row 7" in condition(w, "Failed").message
    assert w.status.phase is Phase.FAILED


def test_retries_are_counted_apart_from_restarts() -> None:
    w = world(failurePolicy={"maxRetries": 2, "maxInfraRestarts": 1})
    until(w, "sft")
    for code, counts in ((1, (1, 0)), (143, (1, 1)), (1, (2, 1))):
        fail(w, run(w, job(w, "sft")), code)
        reconcile(w)
        assert (record(w, "sft").retries, record(w, "sft").infra_restarts) == counts
        wait(w, 600)
        reconcile(w)
    fail(w, run(w, job(w, "sft")), 1)
    reconcile(w, 2)
    assert record(w, "sft").given_up
    assert w.status.phase is Phase.FAILED
    assert (w.status.usage.app_retries, w.status.usage.infra_restarts) == (3, 1)


def test_backoff_and_its_wake_up() -> None:
    w = world()
    fail(w, run(w, until(w, "sft")), 1)
    made = reconcile(w)
    assert made.requeue_after == 10
    wait(w, 9)
    assert not reconcile(w).creates
    wait(w, 1)
    assert reconcile(w).creates


def test_backoff_survives_a_clock_that_was_set_back() -> None:
    w = world()
    fail(w, run(w, until(w, "sft")), 1)
    reconcile(w)
    wait(w, -100_000)
    assert reconcile(w).creates


def test_checkpoint_with_progress_counts_nothing_and_resumes() -> None:
    w = world(failurePolicy={"maxInfraRestarts": 0})
    until(w, "sft")
    for step in (10, 20, 30):
        wait(w, 5)
        fail(w, run(w, job(w, "sft")), 85, checkpoint_step=step)
        reconcile(w)
        assert reconcile(w).creates[0].resumes
    assert record(w, "sft").infra_restarts == 0
    fail(w, run(w, job(w, "sft")), 85, checkpoint_step=30)
    reconcile(w)
    assert record(w, "sft").given_up, "no progress: an infrastructure failure"


def test_success_without_a_result_is_collected_not_repeated() -> None:
    w = world(stages=[{"name": "sft", **GPU}])
    found = run(w, until(w, "sft"))
    succeed(w, found, readable=False)
    reconcile(w)
    edit(w, policy=w.spec.policy.model_copy(update={"sft": w.spec.policy.sft.model_copy(update={"num_epochs": 9.0})}))
    made = reconcile(w)
    (create,) = made.creates
    assert create.request.collect
    assert create.request.input_hash == found.request.input_hash, "where it was published, whatever the spec says now"
    assert record(w, "sft").gpus == 0
    assert (record(w, "sft").retries, record(w, "sft").infra_restarts) == (0, 0)
    succeed(w, job(w, "sft"))
    reconcile(w)
    assert record(w, "sft").state is AttemptState.SUCCEEDED
    assert not record(w, "sft").reused


def test_collecting_that_finds_nothing_runs_the_stage_again() -> None:
    w = world()
    succeed(w, run(w, until(w, "sft")), readable=False)
    reconcile(w, 2)
    fail(w, run(w, job(w, "sft")), 75)
    reconcile(w)
    wait(w, 60)
    (create,) = reconcile(w).creates
    assert not create.request.collect


def test_collecting_that_cannot_be_read_either_is_bounded() -> None:
    w = world(failurePolicy={"maxInfraRestarts": 1})
    until(w, "sft")
    for _ in range(3):
        reconcile(w)
        succeed(w, run(w, job(w, "sft")), readable=False)
        reconcile(w)
        wait(w, 600)
    reconcile(w)
    assert w.status.phase is Phase.FAILED


def test_reused_results_are_counted() -> None:
    w = world()
    succeed(w, until(w, "sft"), reused=True)
    reconcile(w)
    assert record(w, "sft").reused
    assert w.status.usage.reused_stages == 1


def test_earlier_jobs_go_and_the_newest_stays() -> None:
    w = world()
    fail(w, run(w, until(w, "sft")), 1)
    reconcile(w)
    wait(w, 60)
    made = reconcile(w)
    assert made.creates
    assert not made.deletes, "the next attempt has to be stored first"
    made = reconcile(w)
    assert [(d.key.attempt, d.reason) for d in made.deletes] == [(1, "Superseded")]
    finish(w)
    assert {j.key.stage for j in w.jobs.values()} == {
        AttemptKey(r.iteration, r.name, "", 1).stage for r in w.status.stages
    }


def test_timeout_is_an_application_failure() -> None:
    w = world(stages=[{"name": "sft", "timeoutSeconds": 100}])
    run(w, until(w, "sft"))
    assert reconcile(w).requeue_after == 100
    wait(w, 100)
    made = reconcile(w)
    assert [d.reason for d in made.deletes] == ["TimeoutExceeded"]
    w._obey()
    reconcile(w)
    assert (record(w, "sft").retries, record(w, "sft").reason) == (1, "TimeoutExceeded")


def test_pending_deadline_names_the_cause() -> None:
    w = world(stages=[{"name": "sft", "pendingDeadlineSeconds": 100}])
    until(w, "sft")
    reconcile(w)
    assert condition(w, "Progressing").reason == "QuotaExhausted"
    wait(w, 100)
    reconcile(w)
    w._obey()
    reconcile(w, 2)
    assert condition(w, "Failed").status == "True"
    assert "QuotaExhausted" in condition(w, "Failed").message


def test_a_queue_that_takes_its_quota_back() -> None:
    w = world(stages=[{"name": "sft", "timeoutSeconds": 1000, **GPU}])
    found = run(w, until(w, "sft"))
    wait(w, 300)
    w.requeue(0, 0)
    reconcile(w)
    assert (record(w, "sft").state, record(w, "sft").run_seconds) == (AttemptState.PENDING, 300)
    wait(w, 5000)
    reconcile(w)
    run(w, found)
    wait(w, 400)
    made = reconcile(w)
    assert not made.deletes, "the time in the queue is no run time"
    assert made.requeue_after == 300
    succeed(w, found)
    reconcile(w)
    assert (record(w, "sft").run_seconds, record(w, "sft").attempt) == (700, 1)
    assert w.status.usage.gpu_seconds == 2800
    assert w.status.usage.wasted_gpu_seconds == 0


def test_a_run_that_nobody_saw_running_is_booked() -> None:
    w = world(stages=[{"name": "sft", **GPU}])
    found = until(w, "sft")
    reconcile(w)
    found.started = w.now
    wait(w, 50)
    fail(w, found, 1)
    reconcile(w)
    assert (w.status.usage.gpu_seconds, w.status.usage.wasted_gpu_seconds) == (200, 200)


# -- suspending, pausing, budgets --------------------------------------------------------------------------------------


def test_suspend_and_resume() -> None:
    w = world()
    run(w, until(w, "sft"))
    wait(w, 100)
    edit(w, suspend=True)
    made = reconcile(w)
    assert [(d.key.name, d.reason) for d in made.deletes] == [("sft", "Suspended")]
    assert (w.status.phase, condition(w, "Suspended").status) == (Phase.SUSPENDED, "True")
    w._obey()
    reconcile(w, 2)
    stopped = record(w, "sft")
    assert (stopped.state, stopped.reason) == (AttemptState.GONE, "Suspended")
    assert (stopped.retries, stopped.infra_restarts) == (0, 0)
    edit(w, suspend=False)
    (create,) = reconcile(w).creates
    assert (create.key.attempt, create.resumes) == (2, True)


def test_the_deadline_stands_still_while_suspended() -> None:
    w = world(activeDeadlineSeconds=1000)
    assert reconcile(w).requeue_after == 1000
    wait(w, 400)
    edit(w, suspend=True)
    reconcile(w)
    wait(w, 100_000)
    edit(w, suspend=False)
    w._obey()
    reconcile(w, 3)
    wait(w, 599)
    reconcile(w)
    assert w.status.phase is Phase.RUNNING
    wait(w, 1)
    reconcile(w)
    w._obey()
    reconcile(w, 2)
    assert condition(w, "Failed").reason == "DeadlineExceeded"


def test_an_intent_of_a_suspended_cycle_is_given_up() -> None:
    w = world()
    w.apply(plan(w.cycle(), w.observe(), w.now), w.version, crash_after=1)
    edit(w, suspend=True)
    reconcile(w, 2)
    assert record(w, "prepare", 0).state is AttemptState.GONE
    edit(w, suspend=False)
    reconcile(w)
    assert job(w, "prepare", 0).key.attempt == 2


def test_pause_and_approve() -> None:
    w = world(pauseBefore=["sft"])
    for _ in range(12):
        reconcile(w)
        for found in list(w.jobs.values()):
            if found.state is JobState.QUEUED:
                succeed(w, found)
    assert w.status.phase is Phase.PAUSED
    assert condition(w, "Progressing").message == "waits for approval: sft@1"
    edit(w, approved=[StageRef(iteration=1, stage=StageName.SFT)])
    reconcile(w)
    assert live(w) == {"sft@1"}


def test_a_stage_that_has_begun_is_not_paused() -> None:
    w = world()
    fail(w, run(w, until(w, "sft")), 1)
    edit(w, pause_before=[StageName.SFT])
    reconcile(w)
    wait(w, 60)
    assert reconcile(w).creates


def test_gpu_budget_suspends_until_it_is_raised() -> None:
    w = world(budget={"gpuHours": 1}, stages=[{"name": "sft", **GPU}])
    run(w, until(w, "sft"))
    assert reconcile(w).requeue_after == 900
    wait(w, 900)
    made = reconcile(w)
    assert [d.reason for d in made.deletes] == ["BudgetExceeded"]
    w._obey()
    reconcile(w)
    assert condition(w, "Suspended").reason == "BudgetExceeded"
    edit(w, budget=w.spec.budget.model_copy(update={"gpu_hours": 2}))
    assert reconcile(w).creates


def test_money_budget_fails_when_asked_to() -> None:
    w = world(iterations=2, budget={"generatorUSD": 0.5, "onExceeded": "Fail"})
    for _ in range(40):
        reconcile(w)
        w._obey()
        for found in list(w.jobs.values()):
            if found.state is JobState.QUEUED:
                succeed(w, found)
    assert condition(w, "Failed").reason == "BudgetExceeded"


def test_a_spent_money_budget_stops_nothing_that_is_free() -> None:
    w = world(budget={"generatorUSD": 0.5})
    finish(w)
    assert w.status.phase is Phase.COMPLETE
    assert w.status.usage.generator_usd == 0.5


def test_each_shard_gets_its_share_of_the_money() -> None:
    w = world(iterations=2, budget={"generatorUSD": 4.5}, stages=[{"name": "generate", "shards": 2}])
    assert until(w, "generate", 1).request.generator_budget_usd == pytest.approx(2.25)
    succeed(w, job(w, "generate", 1))
    assert until(w, "sft", 1).request.generator_budget_usd is None
    assert until(w, "generate", 2).request.generator_budget_usd == pytest.approx(2.0)


# -- the end, and after it ---------------------------------------------------------------------------------------------


def test_complete() -> None:
    w = world()
    finish(w)
    assert (w.status.phase, condition(w, "Complete").reason) == (Phase.COMPLETE, "AllStagesSucceeded")
    assert w.status.completion_time == w.now
    made = plan(w.cycle(), w.observe(), w.now)
    assert made.status == w.status
    assert (made.creates, made.deletes, made.events) == ((), (), ())
    assert w.status.best is not None


def test_raised_iterations_reopen_other_edits_do_not() -> None:
    w = world()
    finish(w)
    edit(w, policy=w.spec.policy.model_copy(update={"sft": w.spec.policy.sft.model_copy(update={"num_epochs": 2.0})}))
    assert not reconcile(w).creates
    edit(w, iterations=2)
    (create,) = reconcile(w).creates
    assert create.key.stage == AttemptKey(2, StageName.GENERATE, "", 1).stage
    assert condition(w, "Complete").status == "False"
    finish(w)
    assert w.status.iteration == 2


def test_early_stopping_reads_validation() -> None:
    w = world(iterations=5, earlyStopping={"patience": 1})
    score = {"validation/base/macroAccuracy": 0.5}
    succeed(w, until(w, "evaluate", 0), metrics=score)
    succeed(w, until(w, "evaluate", 1), metrics={"validation/grpo/macroAccuracy": 0.6, "test/grpo/macroAccuracy": 0.1})
    succeed(w, until(w, "evaluate", 2), metrics={"validation/grpo/macroAccuracy": 0.6, "test/grpo/macroAccuracy": 0.9})
    finish(w)
    assert condition(w, "Complete").reason == "EarlyStopped"
    assert w.status.iteration == 2
    assert w.status.best is not None
    assert w.status.best.iteration == 1
    assert w.status.summary == "2/5 complete · validation 0.600 (+0.000)"


def test_summary_of_a_running_stage() -> None:
    w = world(iterations=3)
    succeed(w, until(w, "evaluate", 0), metrics={"validation/base/macroAccuracy": 0.857})
    sft = until(w, "sft", 1)
    reconcile(w)
    run(w, job(w, "generate", 2)).step = 10
    succeed(w, sft)
    reconcile(w)
    run(w, job(w, "grpo", 1)).step = 41
    reconcile(w)
    assert w.status.summary == "1/3 grpo 41%, generate@2 10% · validation 0.857"
    succeed(w, job(w, "generate", 2))
    reconcile(w)
    assert w.status.summary == "1/3 grpo 41% · validation 0.857"


def test_edits_act_on_what_has_not_started() -> None:
    w = world()
    sft = until(w, "sft")
    reconcile(w)
    before = record(w, "curate").input_hash
    curation = w.spec.curation.model_copy(update={"reject_guessable": True})
    grpo = w.spec.policy.grpo.model_copy(update={"learning_rate": 0.5})
    edit(w, curation=curation, policy=w.spec.policy.model_copy(update={"grpo": grpo}))
    succeed(w, sft)
    found = until(w, "grpo")
    assert found.request.parameters["grpo"]["learningRate"] == 0.5
    assert record(w, "curate").input_hash == before


def test_a_retry_with_other_parameters_starts_from_scratch() -> None:
    w = world()
    wait(w, 1)
    found = run(w, until(w, "sft"))
    wait(w, 50)
    fail(w, found, 1, checkpoint_step=7)
    edit(w, policy=w.spec.policy.model_copy(update={"sft": w.spec.policy.sft.model_copy(update={"num_epochs": 2.0})}))
    reconcile(w)
    wait(w, 60)
    (create,) = reconcile(w).creates
    assert not create.resumes
    assert record(w, "sft").checkpoint_step == -1


# -- restartFrom -------------------------------------------------------------------------------------------------------


def restart(w: World, stage: str, iteration: int, token: str) -> None:
    edit(w, restart_from=RestartFrom(iteration=iteration, stage=StageName(stage), token=token))


def test_restart_runs_a_stage_and_what_is_made_from_it_again() -> None:
    w = world(iterations=2)
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
    assert w.created[AttemptKey(1, StageName.GRPO, "again", 1)] == 1
    assert w.status.restart_tokens == ["again"]
    made = reconcile(w)
    assert not made.creates, "a token acts once"


def test_restart_changes_the_input_hash() -> None:
    w = world()
    finish(w)
    before = record(w, "grpo").input_hash
    restart(w, "grpo", 1, "a")
    finish(w)
    assert record(w, "grpo").input_hash != before


def test_restart_stops_what_runs_first() -> None:
    w = world()
    found = run(w, until(w, "sft"))
    restart(w, "curate", 1, "a")
    made = reconcile(w)
    assert [(d.key, d.reason) for d in made.deletes] == [(found.key, "Superseded")]
    reconcile(w, 3)
    assert live(w) == {"curate@1"}
    w.finish_delete(0, 1)
    assert until(w, "sft").key == AttemptKey(1, StageName.SFT, "a", 1)


def test_restart_of_what_waits_for_its_own_pod() -> None:
    w = world()
    run(w, until(w, "sft"))
    restart(w, "sft", 1, "a")
    made = reconcile(w, 3)
    assert not made.creates, "the old attempt may still be writing"
    w._obey()
    assert reconcile(w).creates


def test_restart_reopens_a_failed_cycle() -> None:
    w = world()
    fail(w, run(w, until(w, "sft")), 65)
    reconcile(w, 2)
    assert w.status.phase is Phase.FAILED
    restart(w, "sft", 1, "fixed")
    finish(w)
    assert w.status.phase is Phase.COMPLETE
    assert condition(w, "Failed").status == "False"


def test_restart_forgets_the_scores_that_it_repeats() -> None:
    w = world()
    finish(w)
    assert {s.iteration for s in w.status.scores} == {0, 1}
    restart(w, "sft", 1, "a")
    reconcile(w)
    assert {s.iteration for s in w.status.scores} == {0}


def test_restart_before_anything_ran_marks_the_stage() -> None:
    w = world()
    restart(w, "sft", 1, "mine")
    assert until(w, "sft").request.token == "mine"


def test_restart_of_a_stage_that_is_not_there_is_told_once() -> None:
    w = world(stages=[{"name": "grpo", "enabled": False}])
    finish(w)
    restart(w, "grpo", 1, "a")
    assert [e.reason for e in reconcile(w).events] == ["RestartIgnored"]
    assert not reconcile(w).events
    assert w.status.phase is Phase.COMPLETE


# -- size, purity ------------------------------------------------------------------------------------------------------


def test_twenty_iterations_stay_small() -> None:
    w = world(iterations=20)
    sizes = []
    for t in range(1, 21):
        until(w, "report", t)
        sizes.append(size(w.status))
    finish(w)
    assert max(*sizes, size(w.status)) < LIMIT_BYTES
    old = record(w, "sft", 3)
    assert old.output_digest
    assert (old.job_name, old.completion_time) == ("", None)
    assert record(w, "sft", 20).job_name


def test_the_worst_status_still_fits() -> None:
    w = world(iterations=20)
    finish(w)
    long = [
        r.model_copy(update={"message": "ä" * 512, "reason": "R" * 64, "job_name": "j" * 52, "token": "t" * 32})
        for r in w.status.stages
    ]
    full = w.status.model_copy(update={"stages": long, "restart_tokens": [f"{i:032d}" for i in range(200)]})
    made = plan(w.cycle().model_copy(update={"status": full}), w.observe(), w.now)
    assert size(made.status) < LIMIT_BYTES
    assert all(r.output_digest for r in made.status.stages)
    assert CycleStatus.model_validate(made.status.dump()) == made.status


def test_progress_is_cut_to_what_people_look_at() -> None:
    w = world()
    found = run(w, until(w, "generate"))
    (seen,) = [j for j in w.observe().jobs if j.uid == found.uid]
    figures = {f"m{i:02d}": 1.0 for i in range(50)} | {"generatorUSD": 0.25}
    told = Progress(phase="p" * 500, step=1, total=2, metrics=figures)
    jobs = (*(j for j in w.observe().jobs if j is not seen), replace(seen, progress=told))
    made = plan(w.cycle(), Observed(jobs, w.observe().pods), w.now)
    kept = next(r for r in made.status.stages if r.name == "generate").progress
    assert kept is not None
    assert (kept.step, len(kept.phase), len(kept.metrics)) == (1, 64, 9)
    after = plan(w.cycle().model_copy(update={"status": made.status}), Observed(), w.now)
    assert after.status.usage.generator_usd == 0.25, "its own account is lost; what it last said of itself counts"


def test_tokens_are_bounded() -> None:
    w = world()
    w.status = w.status.model_copy(update={"restart_tokens": [f"t{i}" for i in range(200)]})
    restart(w, "prepare", 0, "one-more")
    assert "RestartIgnored" in [event.reason for event in reconcile(w).events]
    assert len(w.status.restart_tokens) == 200


def test_imports_nothing_that_does_something() -> None:
    code = (
        "import sys; import medgr2_operator.plan.machine; "
        "print([m for m in ('torch', 'kubernetes', 'kopf', 'medgr2_jobs', 'random', 'time', 'socket') "
        "if m in sys.modules and m not in before])"
    )
    preload = "import sys, pydantic, json, random, time, socket, medgr2_api.cycle; before = set(sys.modules); "
    found = subprocess.run([sys.executable, "-c", preload + code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
