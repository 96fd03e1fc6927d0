"""What a stage makes of the variables that the operator renders, and of how its processes end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.render_cases import SETTINGS, Case

from medgr2_api.scheduling import DeepSpeed
from medgr2_api.stage_contract import (
    DEEPSPEED_ENV,
    INDEX_ENV,
    NUM_NODES_ENV,
    NUM_PROC_PER_NODE_ENV,
    StageResult,
)
from medgr2_jobs.errors import ConfigError
from medgr2_jobs.runner.distributed import deepspeed
from medgr2_jobs.runner.distributed.rank_results import Outcomes, worst
from medgr2_jobs.runner.distributed.rendezvous import World
from medgr2_operator.render.job import job


def rendered(**settings: Any) -> dict[str, str]:
    """Variables of a training's pod."""
    case = Case("sft", {"stages": [{"name": "sft", **settings}]})
    (container,) = job(case.cycle(), case.create(), SETTINGS)[-1]["spec"]["template"]["spec"]["containers"]
    return {variable["name"]: variable["value"] for variable in container["env"]}


def test_a_plain_stage_needs_no_torchrun() -> None:
    world = World.of(rendered())
    assert world == World()
    assert not world.needs_torchrun


def test_what_the_operator_renders_is_understood() -> None:
    case = rendered(numNodes=2, numProcPerNode=4, deepspeed="Zero3")
    world = World.of({**case, INDEX_ENV: "1"})
    assert (world.nodes, world.processes, world.index, world.deepspeed) == (2, 4, 1, DeepSpeed.ZERO3)
    assert world.endpoint.startswith(f"{world.name}-0.")
    assert world.endpoint.endswith(":29500")
    assert world.layout == "8 Zero3"
    assert World.of(rendered(numProcPerNode=2)).layout == "2 DDP"
    assert World.of(rendered(deepspeed="Zero2")).needs_torchrun


def test_the_index_of_a_shard_is_no_node() -> None:
    assert World.of({INDEX_ENV: "3", NUM_PROC_PER_NODE_ENV: "2"}).index == 0


@pytest.mark.parametrize(
    "variables",
    [{NUM_NODES_ENV: "two"}, {NUM_NODES_ENV: "2"}, {NUM_NODES_ENV: "2", INDEX_ENV: "0"}, {DEEPSPEED_ENV: "Zero9"}],
)
def test_nonsense_is_refused(variables: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        World.of(variables)


def test_deepspeed_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed.importlib.util, "find_spec", lambda name: None)
    assert deepspeed.config() is None
    monkeypatch.setenv(DEEPSPEED_ENV, "Zero2")
    with pytest.raises(ConfigError, match="extra `distributed`"):
        deepspeed.config()


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([0, 0], 0),
        ([143, 78], 78),
        ([85, 85], 85),
        ([143, 85], 85),  # a checkpoint that is there is there
        ([143, 137], 137),
        ([0, 143], 143),
        ([85, 1, 137], 1),
    ],
)
def test_the_code_that_explains_a_node(codes: list[int], expected: int) -> None:
    assert worst([StageResult(exit_code=code) for code in codes]).exit_code == expected


def test_the_first_word_of_a_process_counts(tmp_path: Path) -> None:
    outcomes = Outcomes(tmp_path)
    assert outcomes.read() == []
    outcomes.begin(0)
    outcomes.begin(1)
    first = StageResult(exit_code=85, checkpoint_step=7)
    outcomes.leave(1, first)
    outcomes.leave(1, replace_code(first, 143))
    assert outcomes.read() == [None, first]
    assert not outcomes.asked_to_stop
    outcomes.ask_to_stop()
    assert outcomes.asked_to_stop
    assert outcomes.read() == [None, first]


def replace_code(result: StageResult, code: int) -> StageResult:
    return result.model_copy(update={"exit_code": code})
