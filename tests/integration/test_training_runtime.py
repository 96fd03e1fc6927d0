"""Checkpoints by the clock, and the end of a training that makes no steps any more."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from medgr2_api.stage_contract import REQUEST_ENV, RESULT_PATH_ENV, WORKSPACE_ENV, ExitCode, StageRequest, StageResult
from medgr2_jobs.errors import Checkpointed, Stalled
from medgr2_jobs.runner import ending, main, parts
from medgr2_jobs.runner.distributed.rank_results import RANK_RESULTS_ENV, RankResults
from medgr2_jobs.stages import relabel
from medgr2_jobs.training import checkpoints, stage_callback
from medgr2_jobs.training.watchdog import Watchdog
from tests.support import fork_runner, policy_fixtures
from tests.support.policy_fixtures import GRPO_TRAINER, PolicyWorkspace

RARELY = {"max_steps": 6, "save_steps": 100}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> PolicyWorkspace:
    return policy_fixtures.build(tmp_path_factory.mktemp("workspace"))


def request_of(workspace: PolicyWorkspace, kind: str, name: str, **more: Any) -> StageRequest:
    trainer = {"per_device_train_batch_size": 4, **RARELY}
    request = workspace.sft(trainer, name=name) if kind == "sft" else workspace.grpo(RARELY | GRPO_TRAINER, name=name)
    return request.model_copy(update=more)


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_a_checkpoint_whenever_the_last_one_is_old_enough_changes_no_byte(
    workspace: PolicyWorkspace, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    mark = checkpoints.mark_complete

    def noting(checkpoint: Path, layout: str) -> None:
        written.append(checkpoint.name)
        mark(checkpoint, layout)

    monkeypatch.setattr(checkpoints, "mark_complete", noting)
    seldom = workspace.run(request_of(workspace, kind, "seldom"))
    by_the_run = len(written)
    written.clear()
    often = workspace.run(request_of(workspace, kind, "often", checkpoint_seconds=1e-6))
    assert seldom is not None
    assert often is not None
    last = 4 if kind == "grpo" else 6
    assert by_the_run == 1
    assert written == [f"checkpoint-{step}" for step in range(1, last + 1)]
    assert often.digest == seldom.digest
    assert often.manifest.counters == seldom.manifest.counters
    assert often.manifest.usage["checkpointSeconds"] > 0


def test_a_checkpoint_that_would_not_fit_into_the_grace_period_is_told(
    workspace: PolicyWorkspace, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        workspace.run(request_of(workspace, "sft", "enough", checkpoint_seconds=1e-6))
        assert "one on request would not be whole" not in caplog.text
        workspace.run(request_of(workspace, "sft", "no time", checkpoint_seconds=1e-6, grace_seconds=1e-6))
    assert caplog.text.count("one on request would not be whole") == 1
    assert "template.terminationGracePeriodSeconds" in caplog.text


def hanging(request: StageRequest, root: Path, result: Path, step: int) -> None:
    """Runs a stage in this (child) process; at a step it waits for ever, as for a process that never answers."""
    torch.set_num_threads(1)
    handle = os.open(result.with_suffix(".stderr"), os.O_WRONLY | os.O_CREAT)
    os.dup2(handle, 2)
    original = stage_callback.StageCallback.on_log

    def waits_for_ever(self: Any, args: Any, state: Any, control: Any, **more: Any) -> Any:
        if state.global_step == step:
            threading.Event().wait()
        return original(self, args, state, control, **more)

    stage_callback.StageCallback.on_log = waits_for_ever  # type: ignore[method-assign]
    os.environ |= {
        REQUEST_ENV: request.model_dump_json(by_alias=True),
        WORKSPACE_ENV: str(root),
        RESULT_PATH_ENV: str(result),
    }
    os._exit(main.main())


def test_a_training_that_hangs_says_where_and_is_tried_again(workspace: PolicyWorkspace, tmp_path: Path) -> None:
    trainer = {"max_steps": 6, "save_steps": 2, "per_device_train_batch_size": 4}
    undisturbed = workspace.run(workspace.sft(trainer, name="flows"))
    request = workspace.sft(trainer, name="hangs").model_copy(update={"stall_seconds": 10.0})
    server = fork_runner.context(["tests.support.policy_fixtures", "medgr2_jobs.stages.sft", "medgr2_jobs.stages.grpo"])
    child = server.Process(target=hanging, args=(request, workspace.root, tmp_path / "result.json", 3))
    child.start()
    child.join(120)
    if child.exitcode is None:
        child.kill()
    assert child.exitcode == ExitCode.TEMPORARY
    result = StageResult.model_validate_json((tmp_path / "result.json").read_text())
    assert (result.exit_code, result.reason) == (ExitCode.TEMPORARY, "Stalled")
    assert "no step has ended for 10 s" in result.message
    assert result.usage["checkpointSeconds"] > 0, "what it cost is told, too"
    stacks = (tmp_path / "result.stderr").read_text()
    assert "in waits_for_ever" in stacks
    again = workspace.run(request.model_copy(update={"attempt": 2}))
    assert undisturbed is not None
    assert again is not None
    assert again.digest == undisturbed.digest


def test_one_of_several_processes_leaves_its_result_to_their_parent(tmp_path: Path) -> None:
    if (child := os.fork()) == 0:
        os.environ |= {RANK_RESULTS_ENV: str(tmp_path), "LOCAL_RANK": "1"}
        ending.end_process(Stalled("no step"), {})
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == ExitCode.TEMPORARY
    (result,) = RankResults(tmp_path).read()
    assert result is not None
    assert result.reason == "Stalled"


def test_a_beat_keeps_the_watchdog_quiet() -> None:
    ended: list[str] = []
    with Watchdog("sft", 0.3, {}, lambda error, _: ended.append(str(error))) as watchdog:
        for _ in range(10):
            time.sleep(0.06)
            watchdog.beat()
        assert not ended
        time.sleep(0.6)
    assert len(ended) == 1


def test_the_second_half_of_relabel_goes_on_counting(
    workspace: PolicyWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that fell back would pass for no progress, and cost a restart."""
    for name in ("_SAMPLES", "_TEXTS"):
        monkeypatch.setattr(relabel, name, 24)
    monkeypatch.setattr(parts, "SECONDS", 0.0)
    context = workspace.context(workspace.relabel(name="counting"))
    ask = relabel._ask_reward

    def asked_to_stop(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return ask(*arguments)

    monkeypatch.setattr(relabel, "_ask_reward", asked_to_stop)
    before = signal.signal(signal.SIGTERM, lambda *_: context.stop.set())
    try:
        with pytest.raises(Checkpointed) as stopped:
            relabel.run(context)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.value.step == len(list(context.work.glob("votes-*.json"))) > 1
