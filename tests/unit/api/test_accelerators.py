"""What `budget.gpuHours` counts."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.cycle_documents import spec_with
from tests.support.simulator_helpers import make_simulator, reconcile, record, run, succeed, until, wait

from medgr2_api.accelerators import gpus
from medgr2_api.gpu_use import remarks
from medgr2_api.scheduling import Budget, StageSettings
from medgr2_api.unsupported import unsupported


@pytest.mark.parametrize(
    ("resources", "number"),
    [
        ({}, 0),
        ({"limits": {"cpu": 8, "memory": "1Gi", "hugepages-2Mi": "4Mi", "kubernetes.io/x": 1}}, 0),
        ({"limits": {"nvidia.com/gpu": 8}}, 8),
        ({"limits": {"nvidia.com/gpu": "8"}, "requests": {"nvidia.com/gpu": 8}}, 8),
        ({"requests": {"nvidia.com/gpu": 2}}, 2),
        ({"limits": {"nvidia.com/gpu.shared": 1}}, 1),
        ({"limits": {"nvidia.com/mig-3g.40gb": 2}}, 6 / 7),
        ({"limits": {"nvidia.com/mig-1g.10gb+me": 1}}, 1 / 7),
        ({"limits": {"amd.com/gpu": 4}}, 4),
        ({"limits": {"gpu.intel.com/i915": 1}}, 1),
        ({"limits": {"gpu.intel.com/xe": 1}}, 1),
        ({"limits": {"habana.ai/gaudi": 8, "rdma/hca": 8}}, 8),
        ({"limits": {"google.com/tpu": 4}}, 4),
        ({"limits": {"aws.amazon.com/neuron": 16, "vpc.amazonaws.com/efa": 4}}, 16),
        ({"limits": {"nvidia.com/gpu": 1, "amd.com/gpu": 1}}, 2),
        ({"limits": {"vendor.example/chip": 4}}, 0),
        ({"claims": [{"name": "gpu"}]}, 0),
    ],
)
def test_devices_are_counted_by_name(resources: dict[str, Any], number: float) -> None:
    assert gpus(resources, {}) == pytest.approx(number)


def test_the_user_has_the_last_word() -> None:
    per = {"nvidia.com/mig-1g.10gb": 0.2, "vendor.example/chip": 3, "two": 2, "nvidia.com/gpu": 0.5}
    assert gpus({"limits": {"nvidia.com/mig-1g.10gb": 2}}, per) == pytest.approx(0.4)
    assert gpus({"limits": {"vendor.example/chip": 2}, "claims": [{"name": "two"}]}, per) == 8
    assert gpus({"limits": {"nvidia.com/gpu": 2}}, per) == 1


@pytest.mark.parametrize(
    ("resources", "per", "processes"),
    [
        ({}, {}, 1),
        ({"limits": {"cpu": 8, "rdma/hca": 8}}, {}, 1),
        ({"limits": {"nvidia.com/gpu": 8}}, {}, 8),
        ({"limits": {"nvidia.com/gpu": 8}}, {"nvidia.com/gpu": 0.5}, 8),
        ({"limits": {"amd.com/gpu": "4"}}, {}, 4),
        ({"limits": {"gpu.intel.com/xe": 2}}, {}, 2),
        ({"limits": {"habana.ai/gaudi": 8}}, {}, 8),
        ({"limits": {"nvidia.com/gpu.shared": 4}}, {}, 1),
        ({"limits": {"nvidia.com/mig-7g.80gb": 2}}, {}, 1),
        ({"limits": {"vendor.example/chip": 4}}, {}, 1),
        ({"limits": {"vendor.example/chip": 4}}, {"vendor.example/chip": 1}, 4),
        ({"claims": [{"name": "two"}]}, {"two": 2}, 2),
    ],
)
def test_a_training_has_a_process_for_each_whole_gpu(
    resources: dict[str, Any], per: dict[str, float], processes: int
) -> None:
    budget = Budget(gpus_per=per)
    assert StageSettings(name="sft", resources=resources).processes(budget) == processes
    assert StageSettings(name="sft", resources=resources, num_proc_per_node=3).processes(budget) == 3
    assert StageSettings(name="score", resources=resources).processes(budget) == 1, "it cannot divide its work so"


def test_what_becomes_of_the_gpus_is_said() -> None:
    eight = {"limits": {"nvidia.com/gpu": 8}}
    stages = [
        {"name": "sft", "resources": eight},
        {"name": "grpo", "resources": eight, "numNodes": 2},
        {"name": "reward", "resources": eight, "numProcPerNode": 6},
        {"name": "score", "resources": eight},
        {"name": "evaluate", "resources": eight},
        {"name": "preferences", "resources": {"limits": {"nvidia.com/gpu": 1}}},
        {"name": "generate", "resources": eight},
    ]
    assert list(remarks(spec_with({"stages": stages}))) == [
        "sft: 8 processes, one for each GPU",
        "grpo: 8 processes on each of 2 nodes, one for each GPU",
        "reward: numProcPerNode is 6, and 2 of the 8 GPUs of the pod stay idle",
        "score, evaluate: one process, which uses one of the 8 GPUs of its pod",
    ]


@pytest.mark.parametrize("resources", [{"limits": {"vendor.example/chip": 1}}, {"claims": [{"name": "gpu"}]}])
def test_with_a_budget_what_cannot_be_counted_is_said(resources: dict[str, Any]) -> None:
    stages = [{"name": "sft", "resources": resources}]
    name = "gpu" if "claims" in resources else "vendor.example/chip"
    assert unsupported(spec_with({"stages": stages})) == []
    (problem,) = unsupported(spec_with({"stages": stages, "budget": {"gpuHours": 5}}))
    assert problem.path == "spec.stages[0].resources"
    assert f"how many GPUs is one {name}?" in problem.message
    assert unsupported(spec_with({"stages": stages, "budget": {"gpuHours": 5, "gpusPer": {name: 1}}})) == []


@pytest.mark.parametrize("resource", ["nvidia.com/gpu", "nvidia.com/mig-7g.80gb", "amd.com/gpu"])
def test_the_budget_is_spent_whosever_the_devices_are(resource: str) -> None:
    stages = [{"name": "sft", "numNodes": 2, "resources": {"limits": {resource: 4}}}]
    sim = make_simulator(stages=stages, budget={"gpuHours": 9})
    first = run(sim, until(sim, "sft"))
    assert record(sim, "sft").gpus == pytest.approx(8)
    wait(sim, 3600)
    succeed(sim, first)
    reconcile(sim)
    assert sim.status.usage.gpu_seconds == pytest.approx(8 * 3600)
