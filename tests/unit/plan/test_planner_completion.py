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

from medgr2_api.scheduling import EarlyStopping
from medgr2_api.status import Phase
from medgr2_operator.plan.planner import plan


def test_complete() -> None:
    sim = make_simulator()
    finish(sim)
    assert (sim.status.phase, condition(sim, "Complete").reason) == (Phase.COMPLETE, "AllStagesSucceeded")
    assert sim.status.completion_time == sim.now
    planned = plan(sim.cycle(), sim.observe(), sim.now)
    assert planned.status == sim.status
    assert (planned.creates, planned.deletes, planned.events) == ((), (), ())
    assert sim.status.best is not None


def test_raised_iterations_reopen_other_edits_do_not() -> None:
    sim = make_simulator()
    finish(sim)
    edit(
        sim,
        policy=sim.spec.policy.model_copy(update={"sft": sim.spec.policy.sft.model_copy(update={"num_epochs": 2.0})}),
    )
    assert not reconcile(sim).creates
    edit(sim, iterations=2)
    created = {str(create.key.stage) for create in reconcile(sim).creates}
    assert created == {"generate@2", "relabel@1"}, "nothing of the first iteration runs again"
    assert condition(sim, "Complete").status == "False"
    finish(sim)
    assert sim.status.iteration == 2


def test_raised_iterations_make_what_the_last_one_had_no_use_for() -> None:
    sim = make_simulator()
    finish(sim)
    assert not {"relabel@1", "reward@1"} & {f"{record.name}@{record.iteration}" for record in sim.status.stages}
    before = {(record.name, record.iteration, record.attempt, record.output_digest) for record in sim.status.stages}
    edit(sim, iterations=2)
    finish(sim)
    done = {f"{record.name}@{record.iteration}": record for record in sim.status.stages}
    assert {"relabel@1", "reward@1", "score@2"} <= done.keys()
    assert not {"relabel@2", "reward@2"} & done.keys()
    after = {(record.name, record.iteration, record.attempt, record.output_digest) for record in sim.status.stages}
    assert before <= after, "nothing of the first iteration ran again"
    assert condition(sim, "SpecApplied").status == "True"


def test_early_stopping_makes_nothing_for_a_round_that_does_not_come() -> None:
    sim = make_simulator(iterations=5, earlyStopping={"patience": 1})
    for iteration in (0, 1):
        created = until(sim, "measure", iteration)
        succeed(sim, created, metrics={f"validation/{'sft' if iteration else 'base'}/macroAccuracy": 0.5})
    finish(sim)
    assert condition(sim, "Complete").reason == "EarlyStopped"
    assert {record.name for record in sim.status.stages if record.iteration == 1}.isdisjoint({"relabel", "reward"})
    edit(sim, iterations=6, early_stopping=None)
    finish(sim)
    done = {f"{record.name}@{record.iteration}" for record in sim.status.stages}
    assert {"reward@1", "reward@5", "sft@6"} <= done
    assert "reward@6" not in done


def test_what_was_made_for_a_round_that_does_not_come_was_a_stage_of_the_spec() -> None:
    """The evaluation ends the loop by a rule that was added after the reward model had been trained."""
    sim = make_simulator(iterations=2, pauseBefore=["generate"], approved=[{"iteration": 1, "stage": "generate"}])
    for iteration in (0, 1):
        created = until(sim, "measure", iteration)
        succeed(sim, created, metrics={f"validation/{'sft' if iteration else 'base'}/macroAccuracy": 0.5})
    succeed(sim, until(sim, "reward", 1))
    reconcile(sim)
    edit(sim, early_stopping=EarlyStopping(patience=1))
    finish(sim)
    assert condition(sim, "Complete").reason == "EarlyStopped"
    assert condition(sim, "SpecApplied").status == "True"


def test_early_stopping_reads_validation() -> None:
    sim = make_simulator(iterations=5, earlyStopping={"patience": 1})
    score = {"validation/base/macroAccuracy": 0.5}
    succeed(sim, until(sim, "measure", 0), metrics=score)
    succeed(
        sim, until(sim, "measure", 1), metrics={"validation/grpo/macroAccuracy": 0.6, "test/grpo/macroAccuracy": 0.1}
    )
    succeed(
        sim, until(sim, "measure", 2), metrics={"validation/grpo/macroAccuracy": 0.6, "test/grpo/macroAccuracy": 0.9}
    )
    finish(sim)
    assert condition(sim, "Complete").reason == "EarlyStopped"
    assert sim.status.iteration == 2
    assert sim.status.best is not None
    assert sim.status.best.iteration == 1
    assert sim.status.summary == "2/5 complete · validation macro accuracy 60.0 % (+0.0)"


def test_an_evaluation_that_early_stopping_cannot_go_by_is_told() -> None:
    """As one that is reused and was made by a version that did not know the metric."""
    sim = make_simulator(iterations=2, earlyStopping={"metric": "microAccuracy", "patience": 1})
    both = {"validation/base/macroAccuracy": 0.5, "validation/base/microAccuracy": 0.5}
    succeed(sim, until(sim, "measure", 0), metrics=both)
    reconcile(sim)
    assert "earlyStopping" not in condition(sim, "Progressing").message
    succeed(sim, until(sim, "measure", 1), metrics={"validation/grpo/macroAccuracy": 0.6})
    reconcile(sim)
    told = (
        "earlyStopping overlooks measure@1: no microAccuracy on the validation split; measure it anew with "
        "restartFrom, or choose another spec.earlyStopping.metric"
    )
    assert condition(sim, "Progressing").message.endswith(f"; {told}")
    edit(sim, early_stopping=EarlyStopping(patience=1))
    reconcile(sim)
    assert "earlyStopping" not in condition(sim, "Progressing").message


def test_summary_of_a_running_stage() -> None:
    sim = make_simulator(iterations=3)
    succeed(sim, until(sim, "measure", 0), metrics={"validation/base/macroAccuracy": 0.857})
    sft = until(sim, "sft", 1)
    reconcile(sim)
    run(sim, job(sim, "generate", 2)).step = 10
    succeed(sim, sft)
    reconcile(sim)
    succeed(sim, job(sim, "evaluate", 1))
    run(sim, job(sim, "grpo", 1)).step = 41
    reconcile(sim)
    assert sim.status.summary == "1/3 grpo 41%, generate@2 10% · validation macro accuracy 85.7 %"
    succeed(sim, job(sim, "generate", 2))
    reconcile(sim)
    assert sim.status.summary == "1/3 grpo 41% · validation macro accuracy 85.7 %"


def test_edits_act_on_what_has_not_started() -> None:
    sim = make_simulator()
    sft = until(sim, "sft")
    reconcile(sim)
    before = record(sim, "curate").input_hash
    curation = sim.spec.curation.model_copy(update={"reject_guessable": True})
    grpo = sim.spec.policy.grpo.model_copy(update={"learning_rate": 0.5})
    edit(sim, curation=curation, policy=sim.spec.policy.model_copy(update={"grpo": grpo}))
    succeed(sim, sft)
    sim_job = until(sim, "grpo")
    assert sim_job.request.parameters["grpo"]["learningRate"] == 0.5
    assert record(sim, "curate").input_hash == before


def test_a_retry_with_other_parameters_starts_from_scratch() -> None:
    sim = make_simulator()
    wait(sim, 1)
    sim_job = run(sim, until(sim, "sft"))
    wait(sim, 50)
    fail(sim, sim_job, 1, checkpoint_step=7)
    edit(
        sim,
        policy=sim.spec.policy.model_copy(update={"sft": sim.spec.policy.sft.model_copy(update={"num_epochs": 2.0})}),
    )
    reconcile(sim)
    wait(sim, 60)
    (create,) = reconcile(sim).creates
    assert not create.resumes
    assert record(sim, "sft").checkpoint_step == -1
