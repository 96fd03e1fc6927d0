"""What an upgrade, and an edit, do to the hash of work that has begun."""

from __future__ import annotations

from dataclasses import replace

from tests.support.cycle_specs import make_spec
from tests.support.simulator_helpers import edit, fail, job, make_simulator, reconcile, record, restart, run, until
from tests.support.stage_registry import replaced

from medgr2_api.stages import definition, input_hash
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
