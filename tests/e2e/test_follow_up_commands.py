"""The commands that commands print, executed as they stand; and where a cycle is looked for."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medgr2_operator.cli.app import app
from tests.support.run_fixtures import CYCLE, RunWorkspace

SPACED = "my work; rm"  # a name that a shell would take apart


@pytest.fixture
def here(undisturbed: RunWorkspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunWorkspace:
    """A finished cycle in a folder with an awkward name, where this process is."""
    root = tmp_path / SPACED
    root.mkdir()
    shutil.copytree(undisturbed.root / "ws", root / "ws", symlinks=True)
    monkeypatch.chdir(root)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nowhere"))
    return RunWorkspace(root)


def medgr2(command: str) -> tuple[int, str]:
    """A command line of ours, as a shell would take it."""
    words = shlex.split(command)
    assert words[0] == "medgr2"
    result = CliRunner().invoke(app, words[1:])
    return result.exit_code, result.output


def printed(output: str) -> list[str]:
    """The commands of ours in an output."""
    return [
        match.strip()
        for match in re.findall(r"medgr2 (?:run|restart|resume|approve|review|report)\b.*?(?=  #|$|`)", output, re.M)
    ]


def test_a_cycle_of_the_default_workspace_is_local(here: RunWorkspace) -> None:
    assert medgr2("medgr2 report loop")[1].startswith("no kubeconfig")
    (here.root / "ws").rename(here.root / ".medgr2")
    for command in ("status loop", "logs loop", "logs loop generate@1", "logs loop sft -f", "list"):
        code, output = medgr2(f"medgr2 {command}")
        assert code == 0, (command, output)
    assert "loop" in medgr2("medgr2 list")[1]
    assert "sft@2" in medgr2("medgr2 status loop")[1]
    assert "is Complete: nothing is left to suspend" in medgr2("medgr2 suspend loop")[1]
    assert medgr2("medgr2 report other")[1].startswith("no kubeconfig"), "not known here: the cluster is asked"
    assert medgr2("medgr2 report loop -n ml")[1].startswith("no kubeconfig"), "an option of a cluster"
    assert "did you mean loop" in medgr2("medgr2 status loup -w .medgr2")[1]
    assert "give one of them" in medgr2("medgr2 status loop -w .medgr2 -n ml")[1]


def test_kubectl_medgr2_asks_the_cluster(here: RunWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    (here.root / "ws").rename(here.root / ".medgr2")
    monkeypatch.setattr("sys.argv", ["/usr/bin/kubectl-medgr2"])
    assert medgr2("medgr2 status loop")[1].startswith("no kubeconfig")
    assert medgr2("medgr2 status loop -w .medgr2")[0] == 0


def test_logs_of_both_shards(here: RunWorkspace) -> None:
    for log in sorted((here.root / "ws" / "cycles" / "loop" / "logs").glob("i001-generate-*.log")):
        log.write_text(f"of {log.name}\n")
    output = medgr2("medgr2 logs loop generate@1 -w ws")[1]
    assert {line.split("|")[0].strip() for line in output.splitlines()} == {"generate@1#0", "generate@1#1"}


def test_what_an_edited_cycle_prints_applies_the_edit(here: RunWorkspace) -> None:
    state = here.root / "ws" / "cycles" / "loop" / "state.json"
    document = json.loads(state.read_text())
    document["spec"]["policy"]["grpo"] = {"klCoefficient": 0.5}
    state.write_text(json.dumps(document))
    _, output = medgr2("medgr2 status loop -w ws")
    assert "grpo@1, grpo@2: done with other parameters" in output
    (command,) = printed(output)
    assert command == "medgr2 restart loop grpo@1 -w ws"


def test_an_approval_lets_a_cycle_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    workspace = RunWorkspace(tmp_path)
    paused = json.loads(json.dumps(CYCLE))
    paused["spec"] |= {"iterations": 1, "pauseBefore": ["sft"]}
    workspace.write(paused)
    code, output = workspace.run()
    assert code == 0
    (approve,) = printed(output)
    code, output = medgr2(approve)
    assert (code, "sft@1 may go on" in output) == (0, True)
    (resume,) = printed(output)
    assert shlex.split(resume)[:3] == ["medgr2", "resume", "loop"]
    code, output = workspace.run()  # as resume does, with the fake stages
    assert code == 0, output
    assert workspace.state()["status"]["phase"] == "Complete"
    assert "nothing waits for approval" in medgr2(approve)[1]
