"""What a training stage says of its speed while it runs, on its port."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from prometheus_client import generate_latest

from medgr2_jobs.reward import train as reward_train
from medgr2_jobs.runner.main import execute
from medgr2_jobs.runner.metrics_server import FIGURES, StageMetrics
from medgr2_jobs.training import stage_callback
from tests.support import policy_fixtures
from tests.support.fixtures import last_said, prepared_workspace, stage_request

SPEED = {"tokens", "tokens_per_second", "step_seconds"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> policy_fixtures.PolicyWorkspace:
    return policy_fixtures.build(tmp_path_factory.mktemp("workspace"))


@pytest.mark.parametrize(("kind", "figures"), [("sft", {"loss", "mean_token_accuracy"}), ("grpo", {"reward", "loss"})])
def test_the_policy_stages_tell_their_figures_and_their_speed(
    workspace: policy_fixtures.PolicyWorkspace, kind: str, figures: set[str]
) -> None:
    request = workspace.sft(name="figures") if kind == "sft" else workspace.grpo(name="figures")
    found = workspace.run(request)
    assert found is not None
    said = last_said(workspace.root, request)
    assert (said.step, said.total) == (4, 4)
    assert figures | SPEED <= set(said.metrics)
    history = json.loads(found.file("log.json").read_text())
    assert said.metrics["tokens"] == max(entry.get("num_tokens", 0) for entry in history) > 0
    assert said.metrics["tokens_per_second"] > 0
    assert set(said.metrics) <= set(FIGURES), "a figure without a metric"
    assert b"medgr2_stage_tokens_per_second{" in generate_latest(StageMetrics(request, said, 0.0))


def test_the_reward_stage_counts_the_tokens_it_learns_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    collate = reward_train._Collator.__call__

    def counting(self: Any, rows: Any) -> Any:
        batch = collate(self, rows)
        batches.append(int(batch["attention_mask"].sum()))
        assert batch["attention_mask"].numel() >= batches[-1]
        return batch

    monkeypatch.setattr(reward_train._Collator, "__call__", counting)
    torch.set_num_threads(1)
    _, prepare = prepared_workspace(tmp_path)
    parameters = {
        "seed": 5, "retrain": False, "head": "LastTokenAndLikelihood", "grades": {}, "answerFormat": "OptionText",
        "training": {"lora": {"rank": 0}, "learningRate": 1e-3, "numEpochs": 1,
                     "trainer": {"max_steps": 4, "per_device_train_batch_size": 4}},
        "replayFraction": 0.5,
        "promotion": {
            "minSpearman": -1, "minPairwiseAccuracy": 0, "minImageSensitivity": 0, "maxMeanAbsoluteError": 16,
            "minAurocGain": -1, "maxRegression": 2, "nonInferiorityMargin": 2,
        },
    }  # fmt: skip
    said: list[dict[str, float]] = []
    progress = stage_callback.StageContext.progress

    def listening(self: Any, phase: str, step: int, total: int, **metrics: float) -> None:
        if phase == "train":
            said.append(metrics)
        progress(self, phase, step, total, **metrics)

    monkeypatch.setattr(stage_callback.StageContext, "progress", listening)
    assert execute(stage_request("reward", 0, parameters, {"prepare": prepare}), tmp_path) == 0
    assert {"loss"} | SPEED <= set(said[-1])
    assert [round(each["tokens"]) for each in said[:4]] == [sum(batches[: n + 1]) for n in range(4)]


def test_speed_is_what_passed_between_two_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[dict[str, float]] = []
    context = SimpleNamespace(
        progress=lambda phase, step, total, **metrics: said.append(metrics),
        request=SimpleNamespace(stall_seconds=1800.0),
        usage={},
    )
    callback = stage_callback.StageCallback(context, "sft", settings="policy.sft.trainer")  # type: ignore[arg-type]
    clock = iter((100.0, 102.0, 110.0, 110.5))
    monkeypatch.setattr(stage_callback, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    logs: list[tuple[int, dict[str, Any]]] = [
        (1, {"loss": 3.0, "num_tokens": 1000}),
        (2, {"loss": 2.0, "num_tokens": 1600}),
        (6, {"loss": 1.0, "num_tokens": 3200}),
        (6, {"train_runtime": 10.5}),
    ]
    for step, entry in logs:
        state = SimpleNamespace(global_step=step, max_steps=6)
        callback.on_log(SimpleNamespace(fp16=False), state, None, entry)  # type: ignore[arg-type]
    assert said == [
        {"loss": 3.0, "tokens": 1000},
        {"loss": 2.0, "tokens": 1600, "step_seconds": 2.0, "tokens_per_second": 300},
        {"loss": 1.0, "tokens": 3200, "step_seconds": 2.0, "tokens_per_second": 200},
        {"loss": 1.0, "tokens": 3200, "step_seconds": 2.0, "tokens_per_second": 200},
    ]
