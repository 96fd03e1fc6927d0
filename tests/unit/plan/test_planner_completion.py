"""The end of a cycle, early stopping, the summary, and edits."""

from __future__ import annotations

from tests.support.simulator_helpers import (
    condition,
    edit,
    fail,
    finish,
    job,
    make_simulator,
    reconcile,
    record,
    run,
    succeed,
    until,
    wait,
)

from medgr2_api.status import Phase
from medgr2_operator.plan.planner import plan
from medgr2_operator.plan.types import AttemptKey


def test_complete() -> None:
    w = make_simulator()
    finish(w)
    assert (w.status.phase, condition(w, "Complete").reason) == (Phase.COMPLETE, "AllStagesSucceeded")
    assert w.status.completion_time == w.now
    made = plan(w.cycle(), w.observe(), w.now)
    assert made.status == w.status
    assert (made.creates, made.deletes, made.events) == ((), (), ())
    assert w.status.best is not None


def test_raised_iterations_reopen_other_edits_do_not() -> None:
    w = make_simulator()
    finish(w)
    edit(w, policy=w.spec.policy.model_copy(update={"sft": w.spec.policy.sft.model_copy(update={"num_epochs": 2.0})}))
    assert not reconcile(w).creates
    edit(w, iterations=2)
    (create,) = reconcile(w).creates
    assert create.key.stage == AttemptKey(2, "generate", "", 1).stage
    assert condition(w, "Complete").status == "False"
    finish(w)
    assert w.status.iteration == 2


def test_early_stopping_reads_validation() -> None:
    w = make_simulator(iterations=5, earlyStopping={"patience": 1})
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
    w = make_simulator(iterations=3)
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
    w = make_simulator()
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
    w = make_simulator()
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
