"""Several cycles in one run: what is made once, who goes first, and what the end of one is to the others."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.cycle_documents import tiny_cycle
from tests.support.fake_processes import FakeProcesses, StageBehaviour, failed, ok, run_executors

from medgr2_api.cycle import Cycle
from medgr2_api.stage_contract import StageRequest, StageResult
from medgr2_api.status import AttemptState, Phase
from medgr2_operator.local import runner
from medgr2_operator.local.executor import Executor, RunObserver
from medgr2_operator.local.forkserver_client import ForkserverCrashed, ForkserverUnusable
from medgr2_operator.local.runner import Runner
from medgr2_operator.local.state import merge


class SlowStages(RunObserver):
    """Stages that run until the next tick, which ends the one that has run longest."""

    def __init__(self) -> None:
        self.processes = FakeProcesses(self._start)
        self.running: list[StageRequest] = []
        self.together: list[list[StageRequest]] = []
        """Who ran at the same time, at each start."""

    def _start(self, request: StageRequest) -> StageResult | None:
        self.running.append(request)
        self.together.append(list(self.running))
        return None

    def tick(self) -> None:
        if self.running:
            request = self.running.pop(0)
            name = next(name for name, other in self.processes.requests.items() if other == request)
            self.processes.end(name, 0, ok(request).to_termination_message())


def pair(
    root: Path, monkeypatch: pytest.MonkeyPatch, stage: SlowStages | StageBehaviour
) -> tuple[Executor, Executor, FakeProcesses]:
    """Two cycles that differ from curation on, and the fake processes that they start."""
    processes = stage.processes if isinstance(stage, SlowStages) else FakeProcesses(stage)
    monkeypatch.setattr(runner, "ForkserverClient", lambda *_: processes)

    def cycle(name: str, **spec: Any) -> Executor:
        observer = stage if isinstance(stage, SlowStages) else RunObserver()
        return Executor(root, merge(Cycle.model_validate(tiny_cycle(name, **spec)), None), observer)

    return cycle("first"), cycle("second", curation={"selection": {"strategy": "All"}}), processes


def makers(processes: FakeProcesses, stage: str) -> list[str]:
    """The cycles that started it, in order."""
    return [request.cycle.name for request in processes.requests.values() if request.stage == stage]


def test_while_one_cycle_makes_an_artifact_the_other_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowStages()
    first, second, processes = pair(tmp_path, monkeypatch, slow)
    assert run_executors(first, second) is Phase.COMPLETE
    assert second.phase is Phase.COMPLETE
    assert makers(processes, "prepare") == ["first", "second"], "the second one finds what the first made"
    for running in slow.together:
        artifacts = [(request.stage, request.input_hash, request.shard.index) for request in running]
        assert len(set(artifacts)) == len(artifacts), artifacts
    both = [running for running in slow.together if {request.cycle.name for request in running} == {"first", "second"}]
    assert both, "apart from that they run side by side"


def test_no_more_stages_run_than_the_user_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowStages()
    first, second, _ = pair(tmp_path, monkeypatch, slow)
    assert run_executors(first, second, parallelism=1) is Phase.COMPLETE
    assert second.phase is Phase.COMPLETE
    stages = {(request.cycle.name, request.stage) for running in slow.together for request in running}
    assert {("first", "sft"), ("second", "sft")} <= stages
    for running in slow.together:  # the shards of a stage are one attempt
        assert len({(request.cycle.name, request.stage) for request in running}) == 1


def test_the_cycle_in_front_goes_first_when_there_is_room_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, processes = pair(tmp_path, monkeypatch, SlowStages())
    run_executors(second, first, parallelism=1)
    assert makers(processes, "prepare") == ["second", "first"]


def test_a_cycle_that_fails_does_not_stop_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def behave(request: StageRequest) -> StageResult:
        if request.cycle.name == "first" and request.stage == "curate":
            return failed(request, 65, "DataError", "row 7: is empty")
        return ok(request)

    first, second, _ = pair(tmp_path, monkeypatch, behave)
    run_executors(first, second)
    assert (first.phase, first.failure_exit_code) == (Phase.FAILED, 65)
    assert (second.phase, second.failure_exit_code) == (Phase.COMPLETE, 0)


def test_who_waited_for_an_artifact_makes_it_when_the_maker_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def behave(request: StageRequest) -> StageResult:
        if request.cycle.name == "first" and request.stage == "prepare":
            return failed(request, 65, "DataError", "row 7: is empty")
        return ok(request)

    first, second, processes = pair(tmp_path, monkeypatch, behave)
    run_executors(first, second)
    assert (first.phase, second.phase) == (Phase.FAILED, Phase.COMPLETE)
    assert makers(processes, "prepare") == ["first", "second"]


def test_leaving_ends_all_cycles_also_one_that_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowStages()
    first, second, processes = pair(tmp_path, monkeypatch, slow)
    run = runner.Runner([first, second], slow)
    start = slow.processes.behave

    def leave_at_once(request: StageRequest) -> StageResult | None:
        run.leave()
        return start(request)

    processes.behave = leave_at_once
    processes.signal = lambda name, _: processes.end(name, 85)  # type: ignore[method-assign]
    monkeypatch.setattr(slow, "tick", lambda: None)
    run.run()
    assert (first.phase, second.phase) == (Phase.SUSPENDED, Phase.SUSPENDED)
    assert makers(processes, "prepare") == ["first"]
    assert all(stage.state is not AttemptState.RUNNING for stage in second.cycle.status.stages)


def test_a_forkserver_that_is_gone_when_a_stage_is_to_start_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notices: list[str] = []
    first, second, processes = pair(tmp_path, monkeypatch, ok)
    monkeypatch.setattr(first.observer, "on_notice", notices.append)
    begin, deaths = processes.start, iter([True, False, True])

    def start(name: str, env: dict[str, str], log: Path) -> None:
        if next(deaths, False):
            raise ForkserverCrashed("the forkserver ended", ready=True, signalled=True)
        begin(name, env, log)

    monkeypatch.setattr(processes, "start", start)
    run_executors(first, second)
    assert (first.phase, second.phase) == (Phase.COMPLETE, Phase.COMPLETE)
    assert notices == ["the forkserver ended\nstarting another"] * 2


@pytest.mark.parametrize(
    ("program", "starts", "code", "said"),
    [
        ("import a_package_that_is_broken", 1, 78, "ModuleNotFoundError: No module named 'a_package_that_is_broken'"),
        ("raise SystemExit(1)", 1, 78, "(exit code 1)"),
        ("import os; os.kill(os.getpid(), 9)", 3, 75, "tried 3 times"),
    ],
)
def test_a_forkserver_that_never_comes_up_is_not_tried_for_ever(
    program: str, starts: int, code: int, said: str, tmp_path: Path
) -> None:
    counted = f"open({str(tmp_path / 'starts')!r}, 'a').write('x'); {program}"
    cycle = merge(Cycle.model_validate(tiny_cycle("first")), None)
    executor = Executor(tmp_path, cycle, RunObserver())
    with pytest.raises(ForkserverUnusable, match=re.escape(said)) as ended:
        Runner([executor], RunObserver(), command=[sys.executable, "-c", counted]).run()
    assert ended.value.exit_code == code
    assert (tmp_path / "starts").read_text() == "x" * starts
    assert "forkserver.log" in str(ended.value)


def test_a_forkserver_that_was_up_may_die_as_often_as_stages_may(tmp_path: Path) -> None:
    program = "import os; print('{\"ready\": true}', flush=True); os.read(0, 1); os.kill(os.getpid(), 9)"
    spec = {"failurePolicy": {"maxInfraRestarts": 4, "backoffSeconds": 0, "maxBackoffSeconds": 1}}
    executor = Executor(tmp_path, merge(Cycle.model_validate(tiny_cycle("first", **spec)), None), RunObserver())
    Runner([executor], RunObserver(), command=[sys.executable, "-c", program]).run()
    assert executor.phase is Phase.FAILED
    assert executor.cycle.status.usage.infra_restarts == 5
