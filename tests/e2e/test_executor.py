"""`medgr2 run` from outside: killed, interrupted, raced, restarted. The stages are fakes, everything else is real."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medgr2_operator.cli.app import app
from tests.support.run_fixtures import CYCLE, RunWorkspace

EXPECTED = {"prepare@0", "reward@0", "evaluate@0", "measure@0"} | {
    f"{name}@{t}"
    for t in (1, 2)
    for name in (
        *("generate", "score", "curate", "sft", "grpo", "relabel", "reward"),
        *("evaluate", "evaluategrpo", "measure", "report"),
    )
} - {"relabel@2", "reward@2"}  # nobody would read them
FROM_GRPO = ("grpo", "relabel", "reward", "evaluategrpo", "measure", "report")


def test_whole_graph_runs_once(undisturbed: RunWorkspace) -> None:
    counts = Counter(entry["stage"] for entry in undisturbed.ledger())
    assert set(counts) == EXPECTED
    assert counts.pop("generate@1") == counts.pop("generate@2") == 2  # two shards
    assert set(counts.values()) == {1}
    status = undisturbed.state()["status"]
    assert status["phase"] == "Complete"
    assert status["best"]["macroAccuracy"] == pytest.approx(0.65)


def test_same_command_again_does_nothing(undisturbed: RunWorkspace) -> None:
    before = len(undisturbed.ledger("start"))
    code, _ = undisturbed.run()
    assert code == 0
    assert len(undisturbed.ledger("start")) == before


def test_kill_9_of_the_run_at_random_moments(workspace: RunWorkspace, undisturbed: RunWorkspace) -> None:
    kills = workspace.kill_often(5)
    code, output = workspace.run()
    assert code == 0, output
    assert kills >= 3
    assert workspace.digests() == undisturbed.digests()
    counts = Counter((entry["stage"], entry["pid"]) for entry in workspace.ledger())
    assert set(counts.values()) == {1}
    assert "Resource temporarily unavailable" not in workspace.logs(), "two writers of one stage at the same time"


def test_kill_9_of_stages_at_random_moments(workspace: RunWorkspace, undisturbed: RunWorkspace) -> None:
    rng = random.Random(6)
    process = workspace.start(step=0.03)
    killed = 0
    while process.poll() is None and killed < 12:
        time.sleep(0.1 + rng.random() * 0.2)
        started, ended = workspace.ledger("start"), {entry["pid"] for entry in workspace.ledger()}
        running = [entry["pid"] for entry in started if entry["pid"] not in ended]
        for pid in running[-1:]:
            try:
                os.kill(pid, signal.SIGKILL)
                killed += 1
            except ProcessLookupError:
                pass
    assert process.wait(600) == 0, process.output()
    assert killed >= 3
    assert workspace.digests() == undisturbed.digests()


def test_kill_9_of_the_forkserver(workspace: RunWorkspace, undisturbed: RunWorkspace) -> None:
    process = workspace.start(step=0.03)
    while not workspace.ledger("start"):
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    assert process.wait(600) == 0, process.output()
    output = process.output()
    assert "the process that starts stages ended (signal SIGKILL)" in output.replace("\n", " ")
    assert workspace.digests() == undisturbed.digests()


def test_nothing_is_started_beside_what_a_killed_run_or_forkserver_left_behind(workspace: RunWorkspace) -> None:
    process = workspace.start(step=10)  # time enough to start a second writer, if nobody waited
    for attempts in (1, 2):
        while len(workspace.ledger("start")) < attempts:
            assert process.poll() is None
            time.sleep(0.05)
        if attempts == 1:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(children[0]), signal.SIGKILL)
    assert "Resource temporarily unavailable" not in workspace.logs()
    process.kill()
    process.wait()
    code, output = workspace.run()
    assert code == 0, output
    assert f"waiting for the stages that run {process.pid} left behind" in output
    assert "Resource temporarily unavailable" not in workspace.logs()


def test_interrupt_checkpoints_and_the_same_command_goes_on(workspace: RunWorkspace, undisturbed: RunWorkspace) -> None:
    process = workspace.start(step=0.05)
    while not workspace.ledger():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(600) == 130, process.output()
    assert "the same command goes on" in process.output()
    assert workspace.state()["status"]["phase"] == "Suspended"
    assert "suspend" not in workspace.state()["spec"] or workspace.state()["spec"]["suspend"] is False
    code, output = workspace.run()
    assert code == 0, output
    assert workspace.digests() == undisturbed.digests()


def test_second_run_is_refused_with_the_pid_of_the_first(workspace: RunWorkspace) -> None:
    first = workspace.start(step=0.1)
    while not workspace.ledger("start"):
        time.sleep(0.05)
    code, output = workspace.run()
    first.send_signal(signal.SIGINT)
    first.wait(600)
    assert code == 2
    assert str(first.pid) in output


def test_a_permanent_failure_ends_the_run_with_its_message(workspace: RunWorkspace) -> None:
    folder = workspace.root / "ws" / "test"
    folder.mkdir(parents=True)
    (folder / "fail-curate@1").write_text("row 7, field question: is empty")
    code, output = workspace.run()
    assert code == 65, output
    assert "row 7, field question: is empty" in output.replace("\n", "")
    log = re.search(r"log: (\S+curate\S+\.log)", output)
    assert log is not None
    assert "row 7" in Path(log[1]).read_text()
    assert workspace.state()["status"]["phase"] == "Failed"
    assert not [entry for entry in workspace.ledger("start") if entry["stage"] == "sft@1"]


def test_a_cycle_that_differs_in_one_parameter_reuses_the_rest(workspace: RunWorkspace) -> None:
    assert workspace.run()[0] == 0
    before = len(workspace.ledger())
    other = json.loads(json.dumps(CYCLE))
    other["metadata"]["name"] = "other"
    other["spec"]["policy"]["grpo"] = {"klCoefficient": 0.5}
    workspace.write(other)
    code, output = workspace.run()
    assert code == 0, output
    ran = {entry["stage"] for entry in workspace.ledger()[before:]}
    dependent = {f"{name}@{t}" for t in (1, 2) for name in FROM_GRPO}
    # R⁽¹⁾ differs, so what it scores in the second iteration differs
    assert ran == (dependent & EXPECTED) | {"score@2", "curate@2", "sft@2", "evaluate@2"}
    assert workspace.state("other")["status"]["usage"]["reusedStages"] == len(EXPECTED) - len(ran)


def test_restart_from_reruns_exactly_that_and_what_depends_on_it(workspace: RunWorkspace) -> None:
    assert workspace.run()[0] == 0
    before = len(workspace.ledger())
    code, output = workspace.run("--restart-from", "sft@2")
    assert code == 0, output
    ran = sorted(entry["stage"] for entry in workspace.ledger()[before:])
    assert ran == ["evaluate@2", "evaluategrpo@2", "grpo@2", "measure@2", "report@2", "sft@2"]
    assert workspace.run("--restart-from", "sft@2")[0] == 0
    again = sorted(entry["stage"] for entry in workspace.ledger()[before + len(ran) :])
    assert again == ran, "the same once more is a new wish"


def test_iterations_may_be_raised_after_the_end_but_not_lowered(workspace: RunWorkspace) -> None:
    shorter = json.loads(json.dumps(CYCLE))
    shorter["spec"]["iterations"] = 1
    workspace.write(shorter)
    assert workspace.run()[0] == 0
    workspace.write(CYCLE)
    code, output = workspace.run()
    assert code == 0, output
    assert {entry["stage"] for entry in workspace.ledger()} == EXPECTED
    workspace.write(shorter)
    code, output = workspace.run()
    assert code == 2
    assert "iterations may only grow" in output


def _plan(workspace: RunWorkspace, root: Path) -> dict[str, str]:
    """What `medgr2 plan` says would happen, by stage; and its last line under ''."""
    result = CliRunner(env={"COLUMNS": "500"}).invoke(app, ["plan", str(workspace.file), "--workspace", str(root)])
    assert result.exit_code == 0, result.output
    lines = [line.strip() for line in result.output.splitlines() if "@" in line]
    rows = [re.split(r"\s{2,}", line) for line in lines if not line.startswith("reads ")]
    forecast = {row[0]: next(cell for cell in row[1:] if cell.startswith(("done", "runs", "reused"))) for row in rows}
    return {**forecast, "": result.output.splitlines()[-1]}


def test_plan_foretells_what_a_run_would_do(workspace: RunWorkspace, undisturbed: RunWorkspace) -> None:
    root = workspace.root / "ws"
    shutil.copytree(undisturbed.root / "ws", root, symlinks=True)
    forecast = _plan(workspace, root)
    assert set(forecast) == EXPECTED | {""}
    assert {forecast[name] for name in EXPECTED} == {"done in this cycle"}
    assert forecast[""].startswith(f"0 stages would run, {len(EXPECTED)} are already there")

    other = json.loads(json.dumps(CYCLE))
    other["metadata"]["name"] = "other"
    other["spec"]["policy"]["grpo"] = {"klCoefficient": 0.5}
    workspace.write(other)
    forecast = _plan(workspace, root)
    assert forecast["sft@1"] == "reused: made by loop, iteration 1"
    assert forecast["grpo@1"] == "runs: nothing with these parameters and inputs is in the workspace"
    assert forecast["evaluategrpo@1"] == "runs: its input grpo (grpo@1) is not there yet"
    would_run = {name for name, what in forecast.items() if what.startswith("runs")}
    code, output = workspace.run()
    assert code == 0, output
    assert {entry["stage"] for entry in workspace.ledger() if entry not in undisturbed.ledger()} == would_run


def test_plan_takes_a_stage_for_done_only_with_all_its_shards_and_the_model_that_was_promoted(
    workspace: RunWorkspace, undisturbed: RunWorkspace
) -> None:
    root = workspace.root / "ws"
    shutil.copytree(undisturbed.root / "ws", root, symlinks=True)
    path = root / "cycles" / "loop" / "state.json"
    state = json.loads(path.read_text())
    stages = state["status"]["stages"]
    first = {stage["name"]: stage for stage in stages if stage["iteration"] == 1}
    first["reward"]["promoted"] = False
    state["status"]["stages"] = [stage for stage in stages if stage["iteration"] < 2 and stage["name"] != "generate"]
    state["status"]["phase"] = "Running"  # of a complete cycle nothing would run
    path.write_text(json.dumps(state))
    forecast = _plan(workspace, root)
    assert forecast["generate@1"].startswith("reused")
    assert forecast["generate@2"].startswith("reused")
    assert forecast["score@2"].startswith("runs again: input reward: "), "R of iteration 1 was not promoted"
    (root / "artifacts" / "generate" / first["generate"]["inputHash"] / "shard-001" / "manifest.json").unlink()
    assert _plan(workspace, root)["generate@1"].startswith("runs")


def test_a_pause_waits_for_approval(workspace: RunWorkspace) -> None:
    paused = json.loads(json.dumps(CYCLE))
    paused["spec"] |= {"iterations": 1, "pauseBefore": ["sft"]}
    workspace.write(paused)
    code, output = workspace.run()
    assert code == 0
    assert "sft@1" in output
    assert "medgr2 approve loop -w " in output
    assert not [entry for entry in workspace.ledger("start") if entry["stage"] == "sft@1"]
    paused["spec"]["approved"] = [{"iteration": 1, "stage": "sft"}]
    workspace.write(paused)
    code, output = workspace.run()
    assert code == 0, output
    assert workspace.state()["status"]["phase"] == "Complete"


def test_an_edited_file_never_passes_the_old_results_for_its_own(undisturbed: RunWorkspace, tmp_path: Path) -> None:
    workspace = RunWorkspace(tmp_path)
    shutil.copytree(undisturbed.root / "ws", tmp_path / "ws", symlinks=True)
    policy = {**CYCLE["spec"]["policy"], "grpo": {"klCoefficient": 0.5}}
    workspace.write({**CYCLE, "spec": {**CYCLE["spec"], "policy": policy}})
    before = len(workspace.ledger("start"))
    for _ in range(2):
        code, output = workspace.run()
        assert code == 78, "nothing was run, and the results are not the file's"
        assert "grpo@1, grpo@2: done with other parameters: policy.grpo.klCoefficient: 0 → 0.5" in output
        assert len(workspace.ledger("start")) == before
    (command,) = re.findall(r"^  (medgr2 run .*)  # applies it$", output, re.MULTILINE)
    assert command.endswith("--restart-from grpo@1")
    code, output = workspace.run("--restart-from", "grpo@1")
    assert (code, "other parameters" in output) == (0, False)
    assert len(workspace.ledger("start")) > before
    assert workspace.run()[0] == 0
    status = workspace.state()["status"]
    assert next(c for c in status["conditions"] if c["type"] == "SpecApplied")["status"] == "True"
