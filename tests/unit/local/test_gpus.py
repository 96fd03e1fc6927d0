"""Which GPUs this computer has, and that no two stages of a run get the same."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.support.fake_processes import make_executor, ok, run_executors

from medgr2_api.engine import Engine, VLLMEngine
from medgr2_api.scheduling import StageSettings
from medgr2_api.stage_contract import NUM_PROC_PER_NODE_ENV, VLLM_GPUS_ENV, VLLM_NO_GPUS, StageRequest, StageResult
from medgr2_api.stages import definition
from medgr2_api.status import Phase
from medgr2_operator.local.gpus import VISIBLE, Gpus, here

EIGHT = "".join(f"GPU {n}: NVIDIA H100 80GB HBM3 (UUID: GPU-{n}aaa-bb)\n" for n in range(8))
DIVIDED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaa)
  MIG 3g.20gb     Device  0: (UUID: MIG-one)
  MIG 3g.20gb     Device  1: (UUID: MIG-two)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bbb)
"""


def listing(text: str, code: int = 0) -> list[str]:
    """In nvidia-smi's place."""
    return ["sh", "-c", f'printf %s "$1"; exit {code}', "nvidia-smi", text]


def found(tmp_path: Path, command: list[str], variables: dict[str, str] | None = None) -> list[str]:
    return here(variables or {}, command, tmp_path / "dev", tmp_path / "sys")


def test_the_vendors_tool_lists_them(tmp_path: Path) -> None:
    assert found(tmp_path, listing(EIGHT)) == [f"GPU-{n}aaa-bb" for n in range(8)]
    assert found(tmp_path, listing(DIVIDED)) == ["MIG-one", "MIG-two", "GPU-bbb"]


@pytest.mark.parametrize(
    "command",
    [
        ["/nowhere/nvidia-smi"],
        listing("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 9),
        listing("No devices were found\n"),
    ],
)
def test_without_an_answer_the_devices_count(tmp_path: Path, command: list[str]) -> None:
    assert found(tmp_path, command) == []
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev").mkdir(exist_ok=True)
        (tmp_path / "dev" / name).touch()
    assert found(tmp_path, command) == ["0", "1"]


def test_amds_are_nodes_that_compute(tmp_path: Path) -> None:
    for node, units in enumerate((0, 416, 416)):
        folder = tmp_path / "sys" / "class" / "kfd" / "kfd" / "topology" / "nodes" / str(node)
        folder.mkdir(parents=True)
        (folder / "properties").write_text(f"cpu_cores_count 0\nsimd_count {units}\nmem_banks_count 1\n")
    assert found(tmp_path, ["/nowhere/nvidia-smi"]) == ["0", "1"]


@pytest.mark.parametrize(
    ("given", "devices"),
    [("2,3", ["2", "3"]), ("", []), ("-1", []), ("GPU-x, MIG-y", ["GPU-x", "MIG-y"]), ("1,-1,2", ["1"])],
)
def test_the_user_says_which(tmp_path: Path, given: str, devices: list[str]) -> None:
    assert found(tmp_path, listing(EIGHT), {VISIBLE: given}) == devices


def test_nobody_gets_what_another_has() -> None:
    gpus = Gpus(["a", "b", "c"])
    assert gpus.take("one", 2) == {VISIBLE: "a,b"}
    assert gpus.take("two", 2) is None
    assert gpus.take("two", 1) == {VISIBLE: "c"}
    assert gpus.take("prepare", 0) == {VISIBLE: ""}, "it must not touch one by accident"
    gpus.give_back("one")
    gpus.give_back("prepare")
    assert gpus.free == ["a", "b"]
    assert Gpus().take("one", 1) == {}, "a computer without GPUs"


def test_stages_and_shards_of_a_run_share_them_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs, three shards of score: one waits for a GPU; every stage with a model has its own, no other one any."""
    executor, processes = make_executor(tmp_path, monkeypatch, lambda request: None)
    spec = executor.cycle.spec
    stages = [
        StageSettings(name="score", shards=3),
        StageSettings(name="sft", resources={"limits": {"nvidia.com/gpu": 8}}),
    ]
    executor.cycle = executor.cycle.model_copy(update={"spec": spec.model_copy(update={"stages": stages})})
    had: dict[str, str] = {}
    running: dict[str, StageRequest] = {}
    begun: dict[str, float] = {}
    together = 0

    def start(name: str, env: dict[str, str], log: Path) -> None:
        nonlocal together
        type(processes).start(processes, name, env, log)
        request = processes.requests[name]
        mine = set(filter(None, env[VISIBLE].split(",")))
        assert not mine & {gpu for other in running for gpu in had[other].split(",")}, (name, running)
        assert bool(mine) == definition(request.stage).computes, name
        had[name], running[name], begun[name] = env[VISIBLE], request, time.monotonic()
        together = max(together, sum(1 for each in running.values() if each.stage == "score"))

    def wait(timeout: float) -> list[object]:
        for name, request in list(running.items()):
            if time.monotonic() - begun[name] > 0.03:
                del running[name]
                processes.end(name, 0, ok(request).to_termination_message())
        return type(processes).wait(processes, timeout)

    monkeypatch.setattr(processes, "start", start, raising=False)
    monkeypatch.setattr(processes, "wait", wait, raising=False)
    assert run_executors(executor, gpus=["x", "y"]) is Phase.COMPLETE
    shards = [name for name in had if "score" in name]
    assert len(shards) == 3 * sum(1 for stage in executor.cycle.status.stages if stage.name == "score")
    assert together == 2
    training = [name for name in had if processes.requests[name].stage == "sft"]
    assert {had[name] for name in training} == {"x,y"}
    assert {processes.environments[name][NUM_PROC_PER_NODE_ENV] for name in training} == {"2"}
    assert executor.gpus.free == ["x", "y"]


def test_a_shard_that_never_got_one_ends_with_its_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executor, processes = make_executor(
        tmp_path, monkeypatch, lambda request: None if request.stage == "score" else ok(request)
    )
    stages = [StageSettings(name="score", shards=3)]
    spec = executor.cycle.spec.model_copy(update={"stages": stages})
    executor.cycle = executor.cycle.model_copy(update={"spec": spec})

    def signal(name: str, number: int) -> None:
        processes.end(name, 85, StageResult(exit_code=85, reason="Checkpointed").to_termination_message())

    def wait(timeout: float) -> list[object]:
        if any("score" in name for name in processes.requests) and not executor._leaving:
            executor.leave()
        return type(processes).wait(processes, timeout)

    monkeypatch.setattr(processes, "signal", signal, raising=False)
    monkeypatch.setattr(processes, "wait", wait, raising=False)
    run_executors(executor, gpus=["x"])
    assert len([name for name in processes.requests if "score" in name]) == 1
    assert executor.gpus.free == ["x"]


def test_a_computer_without_gpus_trains_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executor, processes = make_executor(tmp_path, monkeypatch, ok)
    stages = [
        StageSettings(name="sft", resources={"limits": {"nvidia.com/gpu": 8}}),
        StageSettings(name="grpo", num_proc_per_node=2),
    ]
    spec = executor.cycle.spec.model_copy(update={"stages": stages})
    executor.cycle = executor.cycle.model_copy(update={"spec": spec})
    assert run_executors(executor) is Phase.COMPLETE
    counts = {
        request.stage: processes.environments[name].get(NUM_PROC_PER_NODE_ENV)
        for name, request in processes.requests.items()
    }
    assert (counts["sft"], counts["grpo"]) == (None, "2")
    assert all(VISIBLE not in env for env in processes.environments.values())


@pytest.mark.parametrize(
    ("gpus", "vllm", "trains", "samples", "processes"),
    [
        (["a", "b", "c", "d"], {}, "a,b", "c,d", "2"),
        (["a", "b", "c", "d"], {"rollout_gpus": 1}, "a,b,c", "d", "3"),
        (["a"], {}, "a", VLLM_NO_GPUS, None),
        ([], {}, None, None, None),
    ],
)
def test_grpo_s_gpus_are_shared_out_with_the_vllm_that_samples(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpus: list[str],
    vllm: dict[str, int],
    trains: str | None,
    samples: str | None,
    processes: str | None,
) -> None:
    executor, started = make_executor(tmp_path, monkeypatch, ok)
    policy = executor.cycle.spec.policy.model_copy(update={"engine": Engine(vllm=VLLMEngine(**vllm))})
    stages = [StageSettings(name="grpo", resources={"limits": {"nvidia.com/gpu": 4}})]
    spec = executor.cycle.spec.model_copy(update={"stages": stages, "policy": policy})
    executor.cycle = executor.cycle.model_copy(update={"spec": spec})
    assert run_executors(executor, gpus=gpus) is Phase.COMPLETE
    env = next(started.environments[name] for name, request in started.requests.items() if request.stage == "grpo")
    assert (env.get(VISIBLE), env.get(VLLM_GPUS_ENV), env.get(NUM_PROC_PER_NODE_ENV)) == (trains, samples, processes)
