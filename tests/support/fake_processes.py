"""Fake stage processes: the executor is real, what it starts ends as the test says."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medgr2_api.cycle import Cycle
from medgr2_api.hashing import combined_digest, sha256_of
from medgr2_api.stage_contract import REQUEST_ENV, RESULT_PATH_ENV, StageRequest, StageResult
from medgr2_api.status import Phase
from medgr2_operator.local import runner
from medgr2_operator.local.executor import Executor, RunObserver
from medgr2_operator.local.forkserver_client import Exited
from medgr2_operator.local.runner import Runner
from medgr2_operator.local.state import StateFile, merge
from tests.support.cycle_documents import tiny_cycle

StageBehaviour = Callable[[StageRequest], StageResult | None]
"""How a stage ends; None: it runs until somebody ends it."""


def digest(request: StageRequest) -> str:
    """What a stage publishes here."""
    return sha256_of([request.stage, request.iteration, request.shard.index])


def whole(stage: str, iteration: int, shards: int) -> str:
    """Digest of all shards of a stage."""
    return combined_digest([sha256_of([stage, iteration, index]) for index in range(shards)])


def ok(request: StageRequest, **fields: Any) -> StageResult:
    """The result of a stage that published."""
    fields = {"output_digest": digest(request), **fields}
    return StageResult(exit_code=0, reason="Succeeded", input_hash=request.input_hash, **fields)


def failed(request: StageRequest, code: int, reason: str, message: str = "") -> StageResult:
    """The result of a stage that failed."""
    return StageResult(exit_code=code, reason=reason, message=message, input_hash=request.input_hash)


class FakeProcesses:
    """In place of the forkserver's client; has its methods."""

    def __init__(self, behave: StageBehaviour) -> None:
        self.behave = behave
        self.requests: dict[str, StageRequest] = {}
        self.environments: dict[str, dict[str, str]] = {}
        self.signals: list[tuple[str, int]] = []
        self._ended: list[Exited] = []

    def start(self, name: str, env: dict[str, str], log: Path) -> None:
        self.requests[name] = StageRequest.model_validate_json(env[REQUEST_ENV])
        self.environments[name] = env
        result = self.behave(self.requests[name])
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


def make_executor(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    behave: StageBehaviour,
    observer: RunObserver | None = None,
    **options: Any,
) -> tuple[Executor, FakeProcesses]:
    """An executor of the cycle in its stored state, and the fake processes that it starts."""
    processes = FakeProcesses(behave)
    monkeypatch.setattr(runner, "ForkserverClient", lambda *_: processes)
    cycle = merge(Cycle.model_validate(tiny_cycle()), StateFile(root, "loop").load())
    return Executor(root, cycle, observer or RunObserver(), **options), processes


def run_executors(*executors: Executor, **options: Any) -> Phase:
    """A run of these; the phase of the first when it has ended."""
    Runner(executors, executors[0].observer, **options).run()
    return executors[0].phase
