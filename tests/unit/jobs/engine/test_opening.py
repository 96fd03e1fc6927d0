"""Who answers, by what the spec says and where the stage runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.jobs_fixtures import request

from medgr2_api.engine import Engine
from medgr2_api.stage_contract import (
    SECRETS_ENV,
    VLLM_BASE_URL_ENV,
    VLLM_CONTROL_ENV,
    VLLM_GPUS_ENV,
    VLLM_NO_GPUS,
    VLLM_WANTED,
)
from medgr2_api.stages import definition
from medgr2_jobs.engine.in_process import InProcessEngine
from medgr2_jobs.engine.opening import opened, samples_rollouts
from medgr2_jobs.engine.vllm_engine import ServedEngine
from medgr2_jobs.errors import ConfigError
from medgr2_jobs.runner import stage_log
from medgr2_jobs.runner.context import StageContext


@pytest.fixture
def context(tmp_path: Path) -> StageContext[Any]:
    parameters = {"seed": 1, "iteration": 1, "controls": [], "answerFormat": "Letter"}
    asked = request("evaluate", 1, parameters, {})
    return StageContext(asked, definition("evaluate").parameters.model_validate(asked.parameters), tmp_path)


def engine(**kind: Any) -> Engine:
    return Engine.model_validate(kind)


def test_transformers_by_default(context: StageContext[Any]) -> None:
    assert isinstance(opened(context, context.parameters.engine), InProcessEngine)


def test_a_vllm_of_its_own_is_a_child_that_is_not_started_before_it_is_asked(context: StageContext[Any]) -> None:
    with opened(context, engine(vllm={})) as found:
        assert isinstance(found, ServedEngine)
    assert not (context.root / "cycles").exists(), "there is no log of a server"


def test_on_a_cluster_it_is_the_one_beside_the_stage_which_is_let_go(
    context: StageContext[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(stage_log.IN_CLUSTER_ENV, "10.0.0.1")
    monkeypatch.setenv(VLLM_CONTROL_ENV, str(tmp_path))
    monkeypatch.setenv(VLLM_BASE_URL_ENV, "http://127.0.0.1:8000/v1")
    (tmp_path / VLLM_WANTED).write_text("name\n0\n/model\n")
    with opened(context, engine(vllm={})) as found:
        assert isinstance(found, ServedEngine)
    assert (tmp_path / VLLM_WANTED).read_text() == ""


def test_a_stage_that_has_none_beside_it_answers_itself(
    context: StageContext[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(stage_log.IN_CLUSTER_ENV, "10.0.0.1")
    assert isinstance(opened(context, engine(vllm={})), InProcessEngine)


def test_a_server_whose_key_is_not_there_is_refused(
    context: StageContext[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECRETS_ENV, str(tmp_path))
    server = {"baseURL": "http://vllm:8000", "apiKeySecretRef": {"name": "vllm", "key": "key"}}
    with pytest.raises(ConfigError, match="secret 'vllm' has no key 'key'"):
        opened(context, engine(server=server))


def test_rollouts_need_a_vllm_that_has_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    server = engine(server={"baseURL": "http://127.0.0.1:8000"})
    assert samples_rollouts(server)
    assert samples_rollouts(engine(vllm={})), "of a computer without GPUs"
    assert not samples_rollouts(engine(vllm={"rolloutGPUs": 0}))
    assert not samples_rollouts(engine(transformers={}))
    monkeypatch.setenv(VLLM_GPUS_ENV, "2,3")
    assert samples_rollouts(engine(vllm={}))
    monkeypatch.setenv(VLLM_GPUS_ENV, VLLM_NO_GPUS)
    assert not samples_rollouts(engine(vllm={}))
    assert samples_rollouts(server)
    monkeypatch.delenv(VLLM_GPUS_ENV)
    monkeypatch.setenv(stage_log.IN_CLUSTER_ENV, "10.0.0.1")
    assert not samples_rollouts(engine(vllm={}))
    monkeypatch.setenv(VLLM_CONTROL_ENV, "/run")
    assert samples_rollouts(engine(vllm={}))
