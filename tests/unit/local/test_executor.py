"""What the executor tells its stages, and what it makes of how they end."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.support.fake_processes import FakeProcesses, failed, make_executor, ok, run_executors, whole

from medgr2_api import paths
from medgr2_api.cycle import Cycle
from medgr2_api.scheduling import DeepSpeed, StageSettings
from medgr2_api.stage_contract import Progress, StageRequest, StageResult
from medgr2_api.status import Phase, StageStatus
from medgr2_operator.local.executor import Executor, RunObserver


def record(executor: Executor, name: str) -> StageStatus:
    return next(stage for stage in executor.cycle.status.stages if stage.name == name and stage.iteration == 1)


def test_stages_are_told_their_shard_their_threads_and_where_secrets_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, processes = make_executor(tmp_path, monkeypatch, ok, threads=3, secrets=tmp_path / "secrets")
    assert run_executors(executor) is Phase.COMPLETE
    asked = [request for request in processes.requests.values() if request.stage == "generate"]
    assert [(request.shard.index, request.shard.count) for request in asked] == [(0, 2), (1, 2)]
    assert {request.threads for request in processes.requests.values()} == {3}
    for environment in processes.environments.values():
        assert environment["MEDGR2_WORKSPACE"] == str(tmp_path)
        assert environment["MEDGR2_SECRETS_DIR"] == str(tmp_path / "secrets")


def test_trainings_are_told_their_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executor, processes = make_executor(tmp_path, monkeypatch, ok)
    several = StageSettings(name="sft", num_proc_per_node=2, deepspeed=DeepSpeed.ZERO2)
    spec = executor.cycle.spec.model_copy(update={"stages": [*executor.cycle.spec.stages, several]})
    executor.cycle = executor.cycle.model_copy(update={"spec": spec})
    assert run_executors(executor) is Phase.COMPLETE
    for name, environment in processes.environments.items():
        variables = (environment.get("MEDGR2_NUM_PROC_PER_NODE"), environment.get("MEDGR2_DEEPSPEED"))
        assert variables == (("2", "Zero2") if processes.requests[name].stage == "sft" else (None, None))


def test_shards_count_as_one_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executor, processes = make_executor(tmp_path, monkeypatch, lambda request: ok(request, usage={"generatorUSD": 1.5}))
    assert run_executors(executor) is Phase.COMPLETE
    together = whole("generate", 1, 2)
    assert record(executor, "generate").output_digest == together
    (score,) = (request for request in processes.requests.values() if request.stage == "score")
    assert score.inputs["candidates"].output_digest == together
    assert executor.cycle.status.usage.generator_usd == 1.5 * len(processes.requests)


def test_a_permanent_failure_outranks_the_checkpoint_of_another_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def behave(request: StageRequest) -> StageResult:
        if request.stage != "generate" or request.attempt > 1:
            return ok(request)
        if request.shard.index == 0:
            return failed(request, 85, "Checkpointed")
        return failed(request, 65, "DataError", "row 7: is empty")

    executor, _ = make_executor(tmp_path, monkeypatch, behave)
    assert run_executors(executor) is Phase.FAILED
    assert record(executor, "generate").message == "row 7: is empty"
    assert executor.failure_exit_code == 65


def test_a_shard_without_a_readable_result_is_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def behave(request: StageRequest) -> StageResult | None:
        lost = request.stage == "generate" and request.shard.index == 1 and not request.collect
        return None if lost else ok(request)

    executor, processes = make_executor(tmp_path, monkeypatch, behave)
    begin = processes.start

    def start(name: str, env: dict[str, str], log: Path) -> None:
        begin(name, env, log)
        if behave(processes.requests[name]) is None:
            processes.end(name, 0, '{"exitCode"')

    monkeypatch.setattr(processes, "start", start)
    assert run_executors(executor) is Phase.COMPLETE
    assert any(request.collect for request in processes.requests.values())
    assert record(executor, "generate").output_digest == whole("generate", 1, 2)


class Interrupts(RunObserver):
    """Interrupts as soon as a stage runs, and `again` when it was asked to stop."""

    def __init__(self, *, again: bool) -> None:
        self.again = again
        self.executor: Executor | None = None
        self.processes: FakeProcesses | None = None
        self.interrupts = 0

    def tick(self) -> None:
        assert self.executor is not None
        assert self.processes is not None
        asked = bool(self.processes.signals)
        if self.executor.attempts and (self.interrupts == 0 or (self.interrupts == 1 and self.again and asked)):
            self.interrupts += 1
            self.executor.leave()


def ignore_sigterm(processes: FakeProcesses) -> None:
    """The stages do not hear SIGTERM."""

    def receive(name: str, number: int) -> None:
        processes.signals.append((name, number))
        if number == signal.SIGKILL:
            processes.end(name, 137)

    processes.signal = receive  # type: ignore[method-assign]


def test_the_second_interrupt_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    observer = Interrupts(again=True)
    executor, processes = make_executor(tmp_path, monkeypatch, lambda request: None, observer)
    observer.executor, observer.processes = executor, processes
    ignore_sigterm(processes)
    began = time.monotonic()
    run_executors(executor)
    assert time.monotonic() - began < 100, "it did not wait for the end of the grace period, which is five minutes"
    assert [number for _, number in processes.signals] == [signal.SIGTERM, signal.SIGKILL]


def test_a_stage_that_does_not_stop_is_killed_after_the_grace_period(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observer = Interrupts(again=False)
    executor, processes = make_executor(tmp_path, monkeypatch, lambda request: None, observer)
    observer.executor, observer.processes = executor, processes
    ignore_sigterm(processes)
    # a minute passes at every look at the clock; after a day and a half there is no more time
    clock = iter(range(0, 2000 * 60, 60))
    monkeypatch.setattr("medgr2_operator.local.executor.time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    run_executors(executor)
    assert [number for _, number in processes.signals][:1] == [signal.SIGTERM]
    assert processes.signals[-1][1] == signal.SIGKILL


@pytest.mark.parametrize("code", [0, 65])
def test_what_a_killed_run_left_behind_is_taken_and_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def killed(request: StageRequest) -> StageResult:
        raise KeyboardInterrupt

    executor, processes = make_executor(tmp_path, monkeypatch, killed)
    with pytest.raises(KeyboardInterrupt):
        run_executors(executor)
    ((name, request),) = processes.requests.items()
    left = failed(request, 65, "DataError", "row 7: is empty") if code else ok(request)
    processes.end(name, code, left.to_termination_message())

    executor, processes = make_executor(tmp_path, monkeypatch, ok)
    assert run_executors(executor) is (Phase.FAILED if code else Phase.COMPLETE)
    assert "prepare" not in {request.stage for request in processes.requests.values()}
    assert executor.failure_exit_code == code


def test_progress_is_that_of_the_slowest_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Progress] = []

    class ProgressRecorder(RunObserver):
        def on_plan(self, cycle: Cycle) -> None:
            shown = [stage.progress for stage in cycle.status.stages if stage.progress is not None]
            seen.extend(shown)
            if shown:
                for name, request in processes.requests.items():
                    if request.stage == "generate":
                        processes.end(name, 0, ok(request).to_termination_message())

    def behave(request: StageRequest) -> StageResult | None:
        if request.stage != "generate":
            return ok(request)
        name = paths.attempt_name(1, request.stage, "", request.attempt, request.shard.index)
        path = tmp_path / paths.progress("loop", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Progress(phase="ask", step=9 - 4 * request.shard.index, total=10).model_dump_json())
        return None

    executor, processes = make_executor(tmp_path, monkeypatch, behave, ProgressRecorder())
    assert run_executors(executor) is Phase.COMPLETE
    assert seen[0].step == 5


@pytest.mark.parametrize("users", [None, "1"])
def test_only_prepare_may_reach_the_hub_and_only_if_the_user_lets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, users: str | None
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    if users:
        monkeypatch.setenv("HF_HUB_OFFLINE", users)
    executor, processes = make_executor(tmp_path, monkeypatch, ok)
    run_executors(executor)
    for name, environment in processes.environments.items():
        prepare = processes.requests[name].stage == "prepare"
        assert environment.get("HF_HUB_OFFLINE") == ((users or "0") if prepare else None)
