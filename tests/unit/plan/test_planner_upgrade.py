"""What an upgrade, and an edit, do to the hash of work that has begun."""

from __future__ import annotations

from dataclasses import replace

from tests.support.cycle_specs import make_spec
from tests.support.planner_simulator import PlannerSimulator
from tests.support.simulator_helpers import (
    condition,
    edit,
    fail,
    finish,
    job,
    make_simulator,
    reconcile,
    record,
    restart,
    run,
    succeed,
    until,
)
from tests.support.stage_registry import replaced

from medgr2_api.evaluation import Evaluation
from medgr2_api.stages import definition, input_hash
from medgr2_api.status import AttemptState, Phase
from medgr2_operator.plan.spec_cache import cached_spec


def test_begun_work_keeps_its_hash_while_the_spec_asks_for_the_same() -> None:
    """Whatever an upgrade does to the hashes: questions that were paid for are not asked again."""
    w = make_simulator()
    begun = run(w, until(w, "generate"))
    fail(w, begun, 85, checkpoint_step=7)
    newer = replace(definition("generate"), code_version=99)
    with replaced(newer):
        edit(w, suspend=False, template=w.spec.template.model_copy(update={"image": "medgr2:2"}))
        reconcile(w, 2)
        again = job(w, "generate")
        assert (again.key.attempt, again.request.input_hash) == (2, begun.request.input_hash)
        assert record(w, "generate").checkpoint_step == 7
        fail(w, run(w, again), 85, checkpoint_step=9)
        edit(w, generator=w.spec.generator.model_copy(update={"candidates": 7}))
        reconcile(w, 2)
        other = job(w, "generate")
        assert other.request.input_hash != begun.request.input_hash
        assert other.request.input_hash == input_hash(
            "generate",
            newer.parameters.model_validate(other.request.parameters),
            {role: ref.output_digest for role, ref in other.request.inputs.items()},
        )
        assert record(w, "generate").checkpoint_step == -1


def test_a_restart_gives_begun_work_another_hash() -> None:
    w = make_simulator()
    begun = run(w, until(w, "generate"))
    restart(w, "generate", 1, "t1")
    reconcile(w)
    w.obey()
    reconcile(w, 2)
    assert job(w, "generate").request.input_hash != begun.request.input_hash


def test_what_was_asked_is_told_from_where_it_runs() -> None:
    spec = make_spec()
    base = cached_spec("c", spec).asked
    for same in (
        {"iterations": 5},
        {"budget": {"gpuHours": 1}},
        {"queueing": {"queueName": "q"}},
        {"template": {"image": "x"}},
        {"stages": [{"name": "sft", "numNodes": 2}]},
    ):
        assert cached_spec("c", make_spec(**same)).asked == base, same
    for other in (
        {"seed": 4},
        {"evaluation": {"controls": []}},
        {"answerFormat": "OptionText"},
        {"reviews": [{"iteration": 1, "sha256": "0" * 64}]},
        {"data": {"sources": [{"name": "seed", "format": "VQAJsonl", "uri": "elsewhere"}]}},
        {"rewardModel": {"baseModel": "models/other"}},
        {"curation": {"allowOverlap": True}},
        {"policy": {"initFrom": "Previous"}},
        {"generator": {"openAI": {"model": "other", "baseURL": "http://m/v1"}}},
        {"preset": "Tiny"},
        {"stages": [{"name": "generate", "shards": 2}]},
        {"stages": [{"name": "grpo", "enabled": False}]},
    ):
        assert cached_spec("c", make_spec(**other)).asked != base, other


def _as_one_stage_left_it(sim: PlannerSimulator) -> PlannerSimulator:
    """What a version has done whose evaluate asked and measured both checkpoints."""
    known = [
        record
        for record in sim.status.stages
        if record.name not in ("evaluategrpo", "measure") and record.state is AttemptState.SUCCEEDED
    ]
    upgraded = make_simulator(iterations=sim.spec.iterations)
    upgraded.published = sim.published
    upgraded.status = sim.status.model_copy(update={"stages": known})
    return upgraded


def test_a_cycle_that_ended_before_measure_was_a_stage_stays_as_it_is() -> None:
    sim = make_simulator(iterations=1)
    finish(sim)
    sim = _as_one_stage_left_it(sim)
    assert not reconcile(sim).creates
    assert (sim.status.phase, condition(sim, "SpecApplied").status) == (Phase.COMPLETE, "True")
    edit(sim, evaluation=Evaluation(controls=[]))
    reconcile(sim)
    assert "evaluate@0" in condition(sim, "SpecApplied").message, "an edit is told of all the same"


def test_a_cycle_under_way_gets_what_it_lacks_and_keeps_what_it_has() -> None:
    sim = make_simulator(iterations=2)
    succeed(sim, until(sim, "report", 1))
    reconcile(sim)
    sim = _as_one_stage_left_it(sim)
    before = {(one.name, one.iteration): one.output_digest for one in sim.status.stages}
    assert ("report", 1) in before
    finish(sim)
    assert sim.status.phase is Phase.COMPLETE
    after = {(one.name, one.iteration): one.output_digest for one in sim.status.stages}
    assert {key: after[key] for key in before} == before
    assert {("measure", 0), ("evaluategrpo", 1), ("measure", 1), ("measure", 2)} <= after.keys()
