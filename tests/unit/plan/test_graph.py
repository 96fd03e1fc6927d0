"""The stage graph: edges, roles, effective models, and what goes out with a disabled stage."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.cycle_specs import make_spec

from medgr2_api.presets import resolve
from medgr2_api.stages import definition, stage_names
from medgr2_operator.plan.graph import Graph, Shape, build
from medgr2_operator.plan.types import StageKey


def graph_of(iterations: int = 2, off: tuple[str, ...] = (), **changes: Any) -> Graph:
    stages = [{"name": name, "enabled": False} for name in off]
    return build(Shape.of(resolve(make_spec(stages=stages, **changes))), iterations)


def key(text: str) -> StageKey:
    name, iteration = text.split("@")
    return StageKey(int(iteration), name)


def roles(graph: Graph, text: str) -> dict[str, str]:
    return {item.role: " ".join(map(str, item.sources)) for item in graph.nodes[key(text)].inputs}


def names(graph: Graph) -> set[str]:
    return {str(stage) for stage in graph.nodes}


TRAINING_SET = {
    "prepare": "prepare@0",
    "generate-1": "generate@1",
    "generate-2": "generate@2",
    "curate-1": "curate@1",
    "curate-2": "curate@2",
    "relabel-1": "relabel@1",
}
ITERATION = (
    *("generate", "score", "curate", "sft", "grpo", "relabel", "reward"),
    *("evaluate", "evaluategrpo", "measure", "report"),
)
FOR_NEXT_ROUND = ("relabel", "reward")
#: R is retrained on the policy's own answers.
ON_ANSWERS = {"rewardModel": {"baseModel": "models/r", "retrainOn": "PolicyAnswers"}}
WITH_A_STUDENT = {
    "generator": {
        "openAI": {"model": "m", "baseURL": "http://localhost:8000/v1"},
        "distillation": {"baseModel": "models/student", "termsAllowTraining": True},
    }
}


def test_all_stages() -> None:
    expected = {
        "prepare@0",
        "reward@0",
        "evaluate@0",
        "measure@0",
        *(f"{name}@{t}" for t in (1, 2) for name in ITERATION),
    }
    expected -= {f"{name}@2" for name in FOR_NEXT_ROUND}
    assert {name for name in names(graph_of()) if name.split("@")[0] in ("prepare", *ITERATION)} == expected


@pytest.mark.parametrize("stage", stage_names())
def test_a_stage_is_in_the_iterations_that_its_definition_says(stage: str) -> None:
    changes = {"preferences": ON_ANSWERS, "distill": WITH_A_STUDENT}.get(stage, {})
    there = {at.iteration for at in graph_of(3, **changes).nodes if at.name == stage}
    last = 2 if definition(stage).for_next_round else 3
    assert there == {iteration for iteration in range(last + 1) if definition(stage).iterations.include(iteration)}


@pytest.mark.parametrize(
    ("off", "changes"),
    [
        ((), {}),
        ((), {"earlyStopping": {}}),
        (("grpo",), {"policy": {"initFrom": "Previous"}}),
        ((), ON_ANSWERS),
        (("relabel",), {"curation": {"selection": {"strategy": "FittedPrecision"}}}),
        (("evaluate",), {"earlyStopping": {}}),
    ],
)
def test_more_iterations_change_nothing_of_the_earlier_ones(off: tuple[str, ...], changes: dict[str, Any]) -> None:
    """Inputs, and with them hashes, are the same; only what the last iteration lacked is added to it."""
    for count in range(1, 5):
        shorter, longer = graph_of(count, off, **changes), graph_of(count + 1, off, **changes)
        assert {at: longer.nodes[at] for at in shorter.nodes} == shorter.nodes
        added = {at.name for at in longer.nodes.keys() - shorter.nodes.keys() if at.iteration <= count}
        assert added == {name for name in added if definition(name).for_next_round}


def test_what_is_for_the_next_round_waits_for_the_evaluation_that_may_make_this_one_the_last() -> None:
    stopping, fixed = graph_of(earlyStopping={}), graph_of()
    for name in FOR_NEXT_ROUND:
        assert stopping.nodes[key(f"{name}@1")].after == (key("measure@1"),)
        assert fixed.nodes[key(f"{name}@1")].after == ()
    assert stopping.nodes[key("reward@0")].after == ()


def test_nothing_in_the_last_iteration_is_made_for_nobody() -> None:
    """Every stage's artifact is read, or is a model or figures for people."""
    graph = graph_of(3)
    read = frozenset[StageKey]().union(*(node.reads for node in graph))
    assert {at.name for at in graph.nodes if at not in read} <= {"report"}


def test_makers_stand_before_readers() -> None:
    seen: set[StageKey] = set()
    for node in graph_of(20):
        assert node.needs <= seen, node
        seen.add(node.key)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("prepare@0", {}),
        ("reward@0", {"prepare": "prepare@0"}),
        ("evaluate@0", {"prepare": "prepare@0"}),
        ("generate@2", {"prepare": "prepare@0"}),
        ("score@2", {"candidates": "generate@2", "reward": "reward@1 reward@0"}),
        ("curate@1", {"prepare": "prepare@0", "generate-1": "generate@1", "scores": "score@1"}),
        (
            "curate@2",
            {
                "prepare": "prepare@0",
                "generate-1": "generate@1",
                "generate-2": "generate@2",
                "curate-1": "curate@1",
                "relabel-1": "relabel@1",
                "scores": "score@2",
            },
        ),
        ("sft@1", {"prepare": "prepare@0", "generate-1": "generate@1", "curate-1": "curate@1"}),
        ("sft@2", TRAINING_SET),
        ("grpo@2", {**TRAINING_SET, "sft": "sft@2", "reward": "reward@1 reward@0"}),
        (
            "relabel@2",
            {
                "prepare": "prepare@0",
                "candidates": "generate@2",
                "decisions": "curate@2",
                "reward": "reward@1 reward@0",
                "policy": "grpo@2 sft@2",
            },
        ),
        (
            "reward@2",
            {
                "prepare": "prepare@0",
                "generate-1": "generate@1",
                "generate-2": "generate@2",
                "relabel-1": "relabel@1",
                "relabel-2": "relabel@2",
                "reward": "reward@1 reward@0",
            },
        ),
        ("measure@0", {"prepare": "prepare@0", "evaluate": "evaluate@0"}),
        ("evaluate@2", {"prepare": "prepare@0", "sft": "sft@2"}),
        ("evaluategrpo@2", {"prepare": "prepare@0", "grpo": "grpo@2"}),
        ("measure@2", {"prepare": "prepare@0", "evaluate": "evaluate@2", "evaluategrpo": "evaluategrpo@2"}),
    ],
)
def test_edges(stage: str, expected: dict[str, str]) -> None:
    assert roles(graph_of(3), stage) == expected


def test_report_reads_everything_so_far() -> None:
    inputs = roles(graph_of(), "report@2")
    assert inputs.pop("prepare") == "prepare@0"
    assert inputs == {
        f"{name}-{t}": f"{name}@{t}"
        for name, first, last in (
            *(
                ("measure", 0, 2),
                ("evaluate", 0, 2),
                ("evaluategrpo", 1, 2),
                ("reward", 0, 1),
                ("generate", 1, 2),
                ("curate", 1, 2),
            ),
            *(("score", 1, 2), ("sft", 1, 2), ("grpo", 1, 2), ("relabel", 1, 1)),
        )
        for t in range(first, last + 1)
    }
    assert not any("@2" in source for source in roles(graph_of(), "report@1").values())


def test_generate_runs_one_iteration_ahead() -> None:
    node = graph_of(3).nodes[key("generate@3")]
    assert node.after == (key("curate@2"),)
    assert graph_of().nodes[key("generate@1")].after == ()


def test_generate_waits_for_the_evaluation_that_may_stop_the_loop() -> None:
    graph = graph_of(3, earlyStopping={})
    assert graph.nodes[key("generate@3")].after == (key("curate@2"), key("measure@2"))
    assert graph_of(3, off=("evaluate",), earlyStopping={}).nodes[key("generate@3")].after == (key("curate@2"),)


def test_init_from_previous() -> None:
    graph = graph_of(policy={"initFrom": "Previous"})
    assert "policy" not in roles(graph, "sft@1")
    assert roles(graph, "sft@2")["policy"] == "grpo@1 sft@1"
    without = graph_of(off=("grpo",), policy={"initFrom": "Previous"})
    assert roles(without, "sft@2")["policy"] == "sft@1"


def test_fitted_threshold_reads_the_reward_model() -> None:
    fitted = graph_of(curation={"selection": {"strategy": "FittedPrecision"}})
    assert roles(fitted, "curate@2")["reward"] == "reward@1 reward@0"


@pytest.mark.parametrize(
    ("off", "changes", "gone", "stays"),
    [
        (("relabel",), {}, {"relabel", "preferences", "reward"}, {"sft", "grpo", "score"}),
        ((), {"preset": "Paper"}, {"relabel"}, {"sft", "grpo", "preferences", "reward"}),
        ((), {"curation": {"correct": False}}, {"preferences"}, {"sft", "grpo", "relabel", "reward"}),
        ((), ON_ANSWERS, set(), {"relabel", "preferences", "reward"}),
        ((), {"curation": {"correct": False}, **ON_ANSWERS}, {"relabel"}, {"preferences", "reward"}),
        (("reward",), {"curation": {"correct": False}}, {"relabel", "reward"}, {"grpo", "score"}),
        (("grpo",), {}, {"grpo", "evaluategrpo"}, {"relabel", "reward", "evaluate", "measure", "sft"}),
        (("preferences",), ON_ANSWERS, {"preferences", "reward"}, {"grpo", "score"}),
        (("reward",), ON_ANSWERS, {"preferences", "reward"}, {"grpo", "score"}),
        (("sft",), {}, {"sft", "grpo", "relabel", "reward", "evaluate", "evaluategrpo"}, {"score", "curate", "report"}),
        (("score",), {}, {"score"}, {"curate", "grpo", "reward"}),
        (("generate",), {}, {"generate", "score"}, {"curate", "sft", "grpo"}),
        (("evaluate",), {}, {"evaluate", "evaluategrpo", "measure"}, {"report"}),
        (("measure",), {}, {"evaluate", "evaluategrpo", "measure"}, {"report"}),
        (("report",), {}, {"report"}, {"measure"}),
        (("curate",), {}, set(ITERATION) - {"generate", "score", "report"}, {"generate"}),
        (("grpo", "relabel"), {"curation": {"selection": {"strategy": "All"}}}, {"score", "reward"}, {"sft"}),
        (("grpo",), {"curation": {"selection": {"strategy": "All"}}}, {"grpo"}, {"score", "reward", "relabel"}),
        (("relabel",), {"curation": {"selection": {"strategy": "RandomK"}}}, {"reward"}, {"score", "grpo"}),
    ],
)
def test_disabled(off: tuple[str, ...], changes: dict[str, Any], gone: set[str], stays: set[str]) -> None:
    graph = graph_of(3, off, **changes)
    assert not names(graph) & {f"{name}@{t}" for t in (1, 2) for name in gone}
    assert {f"{name}@{t}" for t in (1, 2) for name in stays} <= names(graph)


def test_first_reward_model_stays_while_it_is_read() -> None:
    everything = {"curation": {"selection": {"strategy": "All"}}}
    assert "reward@0" in names(graph_of(off=("reward",)))
    assert "reward@0" in names(graph_of(off=("score", "relabel")))
    assert "reward@0" not in names(graph_of(off=("grpo", "relabel"), **everything))
    assert "reward@0" not in names(graph_of(off=("score", "grpo", "relabel")))
    match_only = {"policy": {"grpo": {"rewards": [{"type": "AnswerMatch", "weight": 1}]}}}
    assert "reward@0" not in names(graph_of(off=("score", "relabel"), **match_only))
    assert "reward" not in roles(graph_of(off=("relabel",), **match_only), "grpo@1")


def test_policy_of_an_iteration() -> None:
    assert graph_of().makers[1, "policy"] == (key("grpo@1"), key("sft@1"))
    assert graph_of(off=("grpo",)).makers[1, "policy"] == (key("sft@1"),)
    assert (1, "policy") not in graph_of(off=("sft",)).makers
    assert roles(graph_of(off=("grpo",)), "relabel@1")["policy"] == "sft@1"


def test_the_papers_way_of_retraining() -> None:
    graph = graph_of(3, preset="Paper")
    training_set = {role: maker for role, maker in TRAINING_SET.items() if role != "relabel-1"}
    assert roles(graph, "preferences@2") == {**training_set, "policy": "grpo@2 sft@2"}
    assert roles(graph, "reward@2") == {
        "prepare": "prepare@0", "preferences": "preferences@2", "reward": "reward@1 reward@0",
    }  # fmt: skip


def test_effective_reward_is_the_newest_promoted() -> None:
    (item,) = [item for item in graph_of(3).nodes[key("score@3")].inputs if item.role == "reward"]
    assert item.chosen(lambda source: True) == key("reward@2")
    assert item.chosen(lambda source: source.iteration < 2) == key("reward@1")
    assert item.chosen(lambda source: False) == key("reward@0")


@settings(max_examples=60, deadline=None)
@given(promoted=st.frozensets(st.sampled_from([f"{name}@{t}" for name in ("reward", "grpo") for t in (1, 2, 3)])))
def test_every_reader_of_an_iteration_reads_the_same_model_and_the_best_that_counts(promoted: frozenset[str]) -> None:
    graph = graph_of(4, policy={"initFrom": "Previous"})
    finished = {str(at) for at in graph.nodes}

    def counts(source: StageKey) -> bool:
        assert str(source) in finished
        return str(source) in promoted

    for node in graph:
        for item in node.inputs:
            source = item.chosen(counts)
            assert source in item.sources
            if item.role == "reward":
                newest = max((t for t in range(1, node.key.iteration) if f"reward@{t}" in promoted), default=0)
                assert source == StageKey(newest, "reward")
            elif item.role == "policy":
                t = node.key.iteration - (node.key.name == "sft")
                assert source == StageKey(t, "grpo" if f"grpo@{t}" in promoted else "sft")
            else:
                assert item.sources == (source,), "what is read to be told of is read whether or not it goes on"


def test_report_reads_models_that_were_not_promoted_too() -> None:
    item = next(item for item in graph_of().nodes[key("report@2")].inputs if item.role == "reward-1")
    assert item.chosen(lambda source: False) == key("reward@1")


def test_reach() -> None:
    graph = graph_of()
    reached = {str(stage) for stage in graph.reach(key("grpo@1"))}
    assert reached == {
        *("grpo@1", "relabel@1", "reward@1", "evaluategrpo@1", "measure@1", "report@1"),
        *(f"{name}@2" for name in ITERATION if name not in ("generate", *FOR_NEXT_ROUND)),
    }, "generate@2 reads nothing of grpo@1: what it paid for stays"
    assert graph.reach(key("report@2")) == {key("report@2")}
    assert graph.reach(key("prepare@0")) == set(graph.nodes)
