"""What a vLLM that a stage starts is told."""

from __future__ import annotations

import pytest

from medgr2_jobs.engine import environment
from medgr2_jobs.engine.environment import Build
from medgr2_jobs.engine.vllm_process import VLLMProcess


def process(gpus: str | None) -> VLLMProcess:
    """Not started."""
    found = VLLMProcess.__new__(VLLMProcess)
    found._gpus = gpus
    return found


def test_it_takes_itself_for_no_process_of_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "0"}
    torchrun |= {"ROLE_RANK": "0", "ROLE_NAME": "default", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    torchrun |= {"TORCHELASTIC_RUN_ID": "none", "PYTHONPATH": "/ours"}
    for name, value in {**torchrun, "HF_HOME": "/models"}.items():
        monkeypatch.setenv(name, value)
    told = process(None)._environment(environment.here(Build.CPU), "key", 1)
    assert not told.keys() & torchrun.keys()
    assert told["HF_HOME"] == "/models"


def test_it_sees_the_gpus_that_are_its_own_and_divides_the_model_over_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert process("2,3")._environment(environment.here(Build.CPU), "key", 1)["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert process(None)._environment(environment.here(Build.CPU), "key", 1)["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert process("2,3")._parallelism(set()) == ["--tensor-parallel-size", "2"]
    assert process("2,3")._parallelism({"--data-parallel-size"}) == []
    assert process("2")._parallelism(set()) == process(None)._parallelism(set()) == []
