"""One `medgr2 run` of several cycles, killed as well. The stages are fakes, everything else is real."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from medgr2_operator.cli.app import app
from tests.support.run_fixtures import CYCLE, RunProcess, RunWorkspace


def until_said(process: RunProcess, text: str) -> None:
    """Waits until a run has said it."""
    deadline = time.monotonic() + 300
    while text not in process.output():
        assert process.poll() is None, process.output()
        assert time.monotonic() < deadline, process.output()
        time.sleep(0.02)


@pytest.fixture
def other(workspace: RunWorkspace) -> str:
    """The file of a second cycle, equal up to GRPO."""
    document = json.loads(json.dumps(CYCLE))
    document["metadata"]["name"] = "other"
    document["spec"]["policy"]["grpo"] = {"klCoefficient": 0.5}
    path = workspace.root / "other.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


def test_two_cycles_side_by_side_make_what_both_need_once(
    workspace: RunWorkspace, undisturbed: RunWorkspace, other: str
) -> None:
    code, output = workspace.run(other)
    assert code == 0, output
    assert workspace.digests() == undisturbed.digests()
    counts = Counter(entry["stage"] for entry in workspace.ledger("start"))
    shared = {"prepare@0", "reward@0", "evaluate@0", "measure@0", "generate@1", "score@1", "curate@1", "sft@1"}
    shared |= {"evaluate@1", "generate@2"}
    assert {name for name, count in counts.items() if count == (2 if name.startswith("generate") else 1)} == shared
    assert {status for name in ("loop", "other") if (status := workspace.state(name)["status"]["phase"])} == {
        "Complete"
    }
    assert workspace.state("other")["status"]["usage"]["reusedStages"] == len(shared)
    assert re.search(r"^\d:\d\d  loop  Started: grpo@1", output, re.M)
    assert re.search(r"^\d:\d\d  other  Started: grpo@1", output, re.M)


def test_kill_9_of_a_run_of_two_cycles_loses_nothing(
    workspace: RunWorkspace, undisturbed: RunWorkspace, other: str
) -> None:
    kills = workspace.kill_often(7, other)
    code, output = workspace.run(other)
    assert code == 0, output
    assert kills >= 3
    assert workspace.digests() == undisturbed.digests()
    assert workspace.state("other")["status"]["phase"] == "Complete"
    assert "Resource temporarily unavailable" not in workspace.logs(), "two writers of one stage at the same time"


def test_a_run_of_two_cycles_ends_as_the_worse_of_them(workspace: RunWorkspace, other: str) -> None:
    folder = workspace.root / "ws" / "test"
    folder.mkdir(parents=True)
    (folder / "fail-report@2").write_text("row 7 is empty")
    loop = json.loads(json.dumps(CYCLE))
    loop["spec"]["iterations"] = 1
    workspace.write(loop)
    code, output = workspace.run(other)
    assert code == 65, output
    assert "other: Failed" in output
    assert "row 7 is empty" in output
    assert workspace.state()["status"]["phase"] == "Complete"


def test_cycles_that_cannot_be_told_apart_are_refused(workspace: RunWorkspace, other: str) -> None:
    code, output = workspace.run(str(workspace.file))
    assert code == 2
    assert "metadata.name: 'loop' is also the name of the cycle in" in output
    code, output = workspace.run(other, "--restart-from", "sft@2")
    assert code == 2
    assert "of which cycle?" in output
    assert not (workspace.root / "ws").exists()


def test_suspend_stops_its_own_cycle_and_no_other(
    workspace: RunWorkspace, undisturbed: RunWorkspace, other: str
) -> None:
    process = workspace.start(other, step=0.05)
    until_said(process, "  loop  Started: sft@1")
    asked = CliRunner().invoke(app, ["suspend", "loop", "--wait", "--timeout", "60", "-w", str(workspace.root / "ws")])
    assert asked.exit_code == 0, asked.output
    assert workspace.state()["status"]["phase"] == "Suspended"
    assert not {stage["state"] for stage in workspace.state()["status"]["stages"]} & {"Running", "Terminating"}
    assert process.wait(600) == 143, process.output()
    assert workspace.state("other")["status"]["phase"] == "Complete"
    assert "stopped; the same command goes on" in process.output()
    resumed = CliRunner().invoke(app, ["suspend", "loop", "-w", str(workspace.root / "ws")])
    assert "does not run; it goes on with: medgr2 resume loop" in resumed.output
    code, output = workspace.run(other)
    assert code == 0, output
    assert workspace.digests() == undisturbed.digests()


def test_suspend_of_a_cycle_that_the_run_does_not_have_leaves_the_run_alone(
    workspace: RunWorkspace, other: str
) -> None:
    first = workspace.start(step=0.05)
    until_said(first, "Started: reward@0")
    first.terminate()
    first.wait(60)
    workspace.file.rename(workspace.root / "loop.yaml")
    workspace.file = Path(other)
    process = workspace.start()
    until_said(process, "Started: ")
    asked = CliRunner().invoke(app, ["suspend", "loop", "-w", str(workspace.root / "ws")])
    assert "loop does not run" in asked.output
    assert process.wait(600) == 0, process.output()
