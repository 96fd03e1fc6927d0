"""The examples as a cluster would run them: every stage rendered, and each that holds a model has what it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.cycle_specs import make_spec

from medgr2_api.cycle import Cycle, Metadata
from medgr2_api.stage_contract import NUM_NODES_ENV, NUM_PROC_PER_NODE_ENV
from medgr2_api.stages import definition
from medgr2_api.unsupported import unsupported
from medgr2_api.yaml_loader import load_cycle
from medgr2_operator.plan.spec_cache import cached_spec
from medgr2_operator.render import trial
from medgr2_operator.render.job import job
from medgr2_operator.render.render_context import RenderSettings

EXAMPLES = {path.stem: path for path in sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))}
SETTINGS = RenderSettings(image="x")
EIGHT = {
    "reward": (1, 8),
    "score": (1, 1),
    "relabel": (1, 1),
    "sft": (1, 8),
    "grpo": (1, 8),
    "evaluate": (1, 1),
    "evaluategrpo": (1, 1),
}

EVALUATES = ("evaluate", "evaluategrpo")


def containers(cycle: Cycle) -> dict[str, dict[str, Any]]:
    """Container main of each stage of a cycle."""
    graph = cached_spec(cycle.metadata.name, cycle.spec).graph(cycle.spec.iterations)
    found = {}
    for key in {node.key.name: node.key for node in graph}.values():
        *_, made = job(cycle, trial._create(cycle, key, collect=False), SETTINGS)
        (found[key.name],) = made["spec"]["template"]["spec"]["containers"]
    return found


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_can_be_run_as_it_is(name: str) -> None:
    cycle = load_cycle(EXAMPLES[name])
    assert list(unsupported(cycle.spec)) == []
    assert trial.unrenderable(cycle, SETTINGS) == trial.without_accelerator(cycle, SETTINGS) == []


def test_flash_attention_without_a_gpu_is_refused_whatever_else_the_stage_has() -> None:
    document = load_cycle(EXAMPLES["one-gpu"]).dump()
    document["spec"]["policy"]["loading"] = {"attention": "FlashAttention2"}
    for stage in document["spec"]["stages"]:
        if stage["name"] == "sft":
            stage["resources"] = {"limits": {"cpu": 8, "memory": "48Gi"}}
    (error,) = trial.without_accelerator(Cycle.model_validate(document), SETTINGS)
    assert "spec.stages[sft].resources" in str(error)
    assert "FlashAttention2" in str(error)


@pytest.mark.parametrize(
    ("name", "processes"),
    [
        ("omnimedvqa", EIGHT),
        ("gemini", EIGHT),
        ("dicom-vllm", EIGHT),
        ("one-gpu", {name: (1, 1) for name in EIGHT if name != "relabel"}),
        ("one-node", {**{name: at for name, at in EIGHT.items() if name not in EVALUATES}, "grpo": (1, 4)}),
        ("two-nodes", {**EIGHT, "sft": (2, 8), "grpo": (2, 8)}),
    ],
)
def test_models_of_real_size_have_gpus_and_a_process_for_each(name: str, processes: dict[str, tuple[int, int]]) -> None:
    """Nodes and processes on each, of the stages that hold a model."""
    found = {}
    for stage, main in containers(load_cycle(EXAMPLES[name])).items():
        if definition(stage).computes and not (stage in EVALUATES and name == "one-node"):  # its vLLM has the GPU
            variables = {variable["name"]: variable.get("value") for variable in main["env"]}
            count = int(variables.get(NUM_PROC_PER_NODE_ENV) or 1)
            assert main["resources"]["limits"]["nvidia.com/gpu"] == count, stage
            found[stage] = (int(variables.get(NUM_NODES_ENV) or 1), count)
    assert found == processes


def refused(*stages: dict[str, Any], base: str = "Qwen/Qwen2.5-VL-3B-Instruct") -> set[str]:
    """Stages of a cycle on this base model that may not run as they are."""
    models = {"policy": {"baseModel": base}, "rewardModel": {"baseModel": base}}
    spec = make_spec(stages=[*stages], **models)
    cycle = Cycle(metadata=Metadata(name="x", namespace="ml", uid="u"), spec=spec)
    assert trial.unrenderable(cycle, SETTINGS) == []
    return {error.path for error in trial.without_accelerator(cycle, SETTINGS)}


def test_a_model_of_real_size_is_not_left_to_the_processor() -> None:
    models = {
        f"spec.stages[{name}].resources"
        for name in containers(load_cycle(EXAMPLES["one-node"]))
        if definition(name).computes
    }
    assert refused() == models
    assert refused(base="builtin://tiny-qwen2.5-vl") == set()
    said = [
        {"name": "sft", "resources": {"limits": {"amd.com/gpu": 1}}},
        {"name": "grpo", "resources": {"requests": {"cpu": 8, "memory": "32Gi"}}},
        {"name": "reward", "resources": {"claims": [{"name": "gpu"}]}},
    ]
    assert refused(*said) == models - {f"spec.stages[{stage['name']}].resources" for stage in said}
    patch = {
        "op": "add",
        "path": "/spec/template/spec/containers/0/resources",
        "value": {"limits": {"nvidia.com/gpu": 1}},
    }
    assert refused({"name": "sft", "patches": [patch]}) == models - {"spec.stages[sft].resources"}
