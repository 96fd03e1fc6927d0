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
from medgr2_jobs.runner.distributed.rank_results import RankResults, worst
from medgr2_jobs.runner.distributed.rendezvous import Rendezvous
from medgr2_operator.render.job import job


def rendered(**settings: Any) -> dict[str, str]:
    """Variables of a training's pod."""
    case = Case("sft", {"stages": [{"name": "sft", **settings}]})
    (container,) = job(case.cycle(), case.create(), SETTINGS)[-1]["spec"]["template"]["spec"]["containers"]
    return {variable["name"]: variable["value"] for variable in container["env"]}


def test_a_plain_stage_needs_no_torchrun() -> None:
    rendezvous = Rendezvous.from_environment(rendered())
    assert rendezvous == Rendezvous()
    assert not rendezvous.needs_torchrun


def test_what_the_operator_renders_is_understood() -> None:
    case = rendered(numNodes=2, numProcPerNode=4, deepspeed="Zero3")
    rendezvous = Rendezvous.from_environment({**case, INDEX_ENV: "1"})
    assert (rendezvous.nodes, rendezvous.processes, rendezvous.index, rendezvous.deepspeed) == (
        2,
        4,
        1,
        DeepSpeed.ZERO3,
    )
    assert rendezvous.endpoint.startswith(f"{rendezvous.name}-0.")
    assert rendezvous.endpoint.endswith(":29500")
    assert rendezvous.layout == "8 Zero3"
    assert Rendezvous.from_environment(rendered(numProcPerNode=2)).layout == "2 DDP"
    assert Rendezvous.from_environment(rendered(deepspeed="Zero2")).needs_torchrun


def test_the_index_of_a_shard_is_no_node() -> None:
    assert Rendezvous.from_environment({INDEX_ENV: "3", NUM_PROC_PER_NODE_ENV: "2"}).index == 0


@pytest.mark.parametrize(
    "variables",
    [{NUM_NODES_ENV: "two"}, {NUM_NODES_ENV: "2"}, {NUM_NODES_ENV: "2", INDEX_ENV: "0"}, {DEEPSPEED_ENV: "Zero9"}],
)
def test_nonsense_is_refused(variables: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        Rendezvous.from_environment(variables)


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
    rank_results = RankResults(tmp_path)
    assert rank_results.read() == []
    rank_results.mark_started(0)
    rank_results.mark_started(1)
    first = StageResult(exit_code=85, checkpoint_step=7)
    rank_results.write_result(1, first)
    rank_results.write_result(1, replace_code(first, 143))
    assert rank_results.read() == [None, first]
    assert not rank_results.stop_requested
    rank_results.request_stop()
    assert rank_results.stop_requested
    assert rank_results.read() == [None, first]


def replace_code(result: StageResult, code: int) -> StageResult:
    return result.model_copy(update={"exit_code": code})
