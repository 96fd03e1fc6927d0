"""Stages that a test plays in place of processes: the executor is real, what it starts ends as the test says."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medgr2_api.cycle import Cycle
from medgr2_api.hashing import combined_digest, sha256_of
from medgr2_api.stage_contract import REQUEST_ENV, RESULT_PATH_ENV, StageName, StageRequest, StageResult
from medgr2_api.status import Phase
from medgr2_operator.local import runner
from medgr2_operator.local.executor import Executor, Listener
from medgr2_operator.local.runner import Runner
from medgr2_operator.local.stage_server_client import Exited
from medgr2_operator.local.state import StateFile, merge

DOCUMENT: dict[str, Any] = {
    "apiVersion": "medgr2.io/v1alpha1",
    "kind": "MedGR2Cycle",
    "metadata": {"name": "played"},
    "spec": {
        "preset": "Tiny",
        "iterations": 1,
        "workspace": {"persistentVolumeClaim": {"claimName": "x"}},
        "data": {
            "sources": [{"name": "seed", "format": "Phantom", "phantom": {"images": 4}}],
            "benchmarks": [{"name": "test", "format": "Phantom", "phantom": {"images": 4}}],
        },
        "generator": {"scripted": {}},
        "rewardModel": {"baseModel": "builtin://tiny-qwen2.5-vl"},
        "policy": {"baseModel": "builtin://tiny-qwen2.5-vl"},
        "failurePolicy": {"backoffSeconds": 0.01, "maxBackoffSeconds": 0.02},
        "stages": [{"name": "generate", "shards": 2}],
    },
}

Play = Callable[[StageRequest], StageResult | None]
"""How a stage ends; None: it runs until somebody ends it."""


def digest(request: StageRequest) -> str:
    """What a stage publishes here."""
    return sha256_of([request.stage, request.iteration, request.shard.index])


def whole(stage: StageName, iteration: int, shards: int) -> str:
    """Digest of all shards of a stage."""
    return combined_digest([sha256_of([stage, iteration, index]) for index in range(shards)])


def ok(request: StageRequest, **fields: Any) -> StageResult:
    """It published."""
    fields = {"output_digest": digest(request), **fields}
    return StageResult(exit_code=0, reason="Succeeded", input_hash=request.input_hash, **fields)


def failed(request: StageRequest, code: int, reason: str, message: str = "") -> StageResult:
    """It did not."""
    return StageResult(exit_code=code, reason=reason, message=message, input_hash=request.input_hash)


class Theatre:
    """Has the methods of `Processes`."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.requests: dict[str, StageRequest] = {}
        self.environments: dict[str, dict[str, str]] = {}
        self.signals: list[tuple[str, int]] = []
        self._ended: list[Exited] = []

    def start(self, name: str, env: dict[str, str], log: Path) -> None:
        self.requests[name] = StageRequest.model_validate_json(env[REQUEST_ENV])
        self.environments[name] = env
        result = self.play(self.requests[name])
        if result is not None:
            self.end(name, result.exit_code, result.to_termination_message())

    def end(self, name: str, code: int, text: str = "") -> None:
        """The process ends; `text` is what it left as its result."""
        if text:
            path = Path(self.environments[name][RESULT_PATH_ENV])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self._ended.append(Exited(name, code))

    def signal(self, name: str, number: int) -> None:
        self.signals.append((name, number))

    def wait(self, timeout: float) -> list[Exited]:
        if not self._ended:
            time.sleep(min(timeout, 0.01))
        ended, self._ended = self._ended, []
        return ended

    def wait_for_orphans(self, patience: float) -> None:
        """There are none."""

    def close(self) -> None:
        """Nothing to close."""


def stage(
    root: Path, monkeypatch: pytest.MonkeyPatch, play: Play, listener: Listener | None = None, **options: Any
) -> tuple[Executor, Theatre]:
    """An executor of the cycle in its stored state, and what it plays with."""
    theatre = Theatre(play)
    monkeypatch.setattr(runner, "Processes", lambda *_: theatre)
    cycle = merge(Cycle.model_validate(DOCUMENT), StateFile(root, "played").load())
    return Executor(root, cycle, listener or Listener(), **options), theatre


def perform(*made: Executor, **options: Any) -> Phase:
    """A run of these; the phase of the first when it has ended."""
    Runner(made, made[0].listener, **options).run()
    return made[0].phase
