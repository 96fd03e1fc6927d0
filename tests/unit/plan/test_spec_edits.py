"""A cycle whose spec was edited after stages were made: the status says which, how they differ, and what applies it."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.cycle_specs import make_spec
from tests.support.planner_simulator import PlannerSimulator
from tests.support.simulator_helpers import (
    condition,
    fail,
    finish,
    job,
    make_simulator,
    reconcile,
    restart,
    run,
    until,
)
from tests.support.stage_registry import replaced

from medgr2_api.stages import definition
from medgr2_api.status import CycleStatus, Phase
from medgr2_operator.plan.status_compaction import LIMIT_BYTES, size

REVIEW = {"iteration": 1, "sha256": "a" * 64}


def finished(**spec: Any) -> PlannerSimulator:
    sim = make_simulator(**spec)
    finish(sim)
    assert condition(sim, "SpecApplied").status == "True"
    return sim


def edited(sim: PlannerSimulator, **spec: Any) -> str:
    """The message of the condition after another file was applied; empty: the spec is applied."""
    sim.spec = make_spec(iterations=sim.spec.iterations, **spec)
    sim.generation += 1
    plan = reconcile(sim)
    assert not plan.creates
    applied = condition(sim, "SpecApplied")
    assert applied.observed_generation == sim.generation
    warned = [event.message for event in plan.events if event.reason == "SpecNotApplied"]
    assert warned == ([applied.message] if applied.status == "False" else [])
    return applied.message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"policy": {"sft": {"trainer": {"max_steps": 300}}}},
            "restart from sft@1 to apply the spec; sft@1: done with other parameters:"
            " policy.sft.trainer.max_steps: 400 → 300",
        ),
        (
            {"reviews": [REVIEW]},
            f"from curate@1 to apply the spec; curate@1: done with other parameters: reviews: none → {'a' * 64}",
        ),
        ({"seed": 18}, "and 6 more: done with other parameters: seed: 17 → 18"),
        ({"curation": {"allowOverlap": True}}, "curation.allowOverlap: false → true"),
        (
            {"data": {"sources": [{"name": "seed", "format": "VQAJsonl", "uri": "data/other"}]}},
            "data.sources[0].uri: data/seed → data/other",
        ),
        ({"rewardModel": {"baseModel": "models/other"}}, "rewardModel.baseModel: models/r → models/other"),
        ({"evaluation": {"controls": []}}, "evaluation.controls"),
        ({"answerFormat": "OptionText"}, "answerFormat: Letter → OptionText"),
        ({"policy": {"initFrom": "Previous"}}, "policy.initFrom: Base → Previous"),
        ({"preset": "Tiny"}, "answerFormat: Letter → OptionText, rewardModel."),
        ({"stages": [{"name": "generate", "shards": 2}]}, "stages[generate].shards: 1 → 2"),
        (
            {"stages": [{"name": "grpo", "enabled": False}]},
            "measure@1: done with other parameters: evaluategrpo read from evaluategrpo@1 → nothing",
        ),
        ({"stages": [{"name": "grpo", "enabled": False}]}, "grpo@1: done, and no stage of this spec"),
    ],
)
def test_what_differs_is_named(changes: dict[str, Any], expected: str) -> None:
    sim = finished(policy={"sft": {"trainer": {"max_steps": 400}}})
    policy = {"sft": {"trainer": {"max_steps": 400}}, **changes.pop("policy", {})}
    message = edited(sim, policy=policy, **changes)
    assert expected in message
    assert bool(expected) == bool(message)


@pytest.mark.parametrize(
    "same",
    [
        {"budget": {"gpuHours": 1}},
        {"queueing": {"queueName": "q"}},
        {"template": {"image": "x"}},
        {"stages": [{"name": "sft", "numNodes": 2}]},
        {"maxParallelStages": 2},
        {"failurePolicy": {"maxRetries": 1}},
        {"generator": {"openAI": {"model": "m", "baseURL": "http://elsewhere:8000/v1"}, "concurrency": 2}},
    ],
)
def test_where_and_when_stages_run_is_no_difference(same: dict[str, Any]) -> None:
    assert edited(finished(), **same) == ""


def test_an_edit_that_is_taken_back_is_none() -> None:
    sim = finished()
    assert edited(sim, seed=18)
    assert edited(sim) == ""


def test_a_restart_applies_it() -> None:
    sim = finished()
    changes: dict[str, Any] = {"policy": {"sft": {"numEpochs": 7}}, "evaluation": {"controls": []}}
    assert "restart from evaluate@0, then from sft@1 to apply the spec" in edited(sim, **changes)
    restart(sim, "sft", 1, "r1")
    finish_again(sim)
    assert condition(sim, "SpecApplied").message.startswith("restart from evaluate@0 to apply")
    restart(sim, "evaluate", 0, "r2")
    finish_again(sim)
    assert condition(sim, "SpecApplied").status == "True"
    assert len(sim.status.specs) == 2, "of stages that differ in nothing the first one is as good"


def finish_again(sim: PlannerSimulator) -> None:
    reconcile(sim)
    finish(sim)
    reconcile(sim)


def test_what_is_switched_on_after_the_end_has_not_run() -> None:
    off = {"stages": [{"name": "grpo", "enabled": False}]}
    sim = finished(**off)
    assert "grpo@1: has not run, and the cycle is complete" in edited(sim)
    restart(sim, "grpo", 1, "r1")
    reconcile(sim)
    assert sim.status.phase is Phase.RUNNING


def test_what_early_stopping_left_out_has_not_run() -> None:
    sim = make_simulator(iterations=3, earlyStopping={"patience": 1, "minDelta": 0.9})
    finish(sim)
    assert condition(sim, "Complete").reason == "EarlyStopped"
    assert condition(sim, "SpecApplied").status == "True"
    assert "has not run, and the cycle is complete" in edited(sim)


def test_what_runs_and_what_comes_is_told_apart() -> None:
    sim = make_simulator(iterations=2)
    run(sim, until(sim, "sft", 1))
    sim.spec = make_spec(iterations=2, policy={"sft": {"numEpochs": 7}, "grpo": {"klCoefficient": 0.5}})
    reconcile(sim)
    assert condition(sim, "SpecApplied").message == (
        "restart from sft@1 to apply the spec; sft@1: runs with other parameters: policy.sft.numEpochs: 1 → 7"
    )
    finish(sim)
    assert condition(sim, "SpecApplied").message == (
        "restart from sft@1 to apply the spec; sft@1: done with other parameters: policy.sft.numEpochs: 1 → 7"
    ), "not sft@2, not grpo"
    assert len(sim.status.specs) == 2


def test_what_failed_for_good_failed_with_the_old_spec() -> None:
    sim = make_simulator()
    fail(sim, run(sim, until(sim, "sft")), 78)
    reconcile(sim, 2)
    assert sim.status.phase is Phase.FAILED
    assert condition(sim, "SpecApplied").status == "True", "what a failed cycle has not reached is no edit"
    assert "; sft@1: failed with other parameters: " in edited(sim, policy={"sft": {"numEpochs": 7}})


def test_an_upgrade_is_no_edit() -> None:
    sim = finished()
    with replaced(definition("sft").__class__(**{**vars(definition("sft")), "code_version": 99})):
        reconcile(sim)
    assert condition(sim, "SpecApplied").status == "True"


def test_a_status_of_a_version_that_recorded_no_specs() -> None:
    sim = finished()
    old = sim.status.dump()
    del old["specs"]
    for stage in old["stages"]:
        stage.pop("asked", None)
    sim.status = CycleStatus.model_validate(old)
    assert edited(sim) == ""
    assert edited(sim, policy={"sft": {"numEpochs": 7}}).endswith(
        "; sft@1: done with other parameters, or by another version, which the status does not record"
    )
    restart(sim, "sft", 1, "r1")
    finish_again(sim)
    assert condition(sim, "SpecApplied").status == "True"


def test_a_collecting_attempt_was_made_with_the_spec_of_then() -> None:
    sim = make_simulator()
    begun = run(sim, until(sim, "sft"))
    sim.publish(begun)
    sim.finish(begun, 0, "", None)
    sim.release(begun, linger=False)
    sim.spec = make_spec(iterations=1, policy={"sft": {"numEpochs": 7}})
    reconcile(sim, 2)
    assert job(sim, "sft").request.collect
    finish(sim)
    assert "sft@1: done with other parameters: policy.sft.numEpochs: 1 → 7" in condition(sim, "SpecApplied").message


def test_many_edits_of_long_specs_stay_small() -> None:
    sim = make_simulator(iterations=20)
    for t in range(1, 21):
        until(sim, "sft", t)
        questions = [f"a rather long source of data number {t} {'x' * 200}" for _ in range(20)]
        sources = [{"name": f"s{i}", "format": "VQAJsonl", "uri": q} for i, q in enumerate(questions)]
        sim.spec = make_spec(iterations=20, data={"sources": sources})
    finish(sim)
    reconcile(sim)
    assert size(sim.status) < LIMIT_BYTES
    applied = condition(sim, "SpecApplied")
    assert applied.status == "False"
    assert "prepare@0" in applied.message
