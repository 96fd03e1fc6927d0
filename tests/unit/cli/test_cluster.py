"""The commands on a cluster, as far as they need none: what they import, how they read words, what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.cycle_documents import tiny_cycle
from tests.support.cycle_specs import make_spec
from tests.support.fake_artifacts import publish
from tests.support.rows import row_of
from typer.testing import CliRunner

from medgr2_api.cycle import Cycle, Metadata
from medgr2_jobs.store.rows.candidates import Candidate
from medgr2_operator.cli import lineage
from medgr2_operator.cli.app import app
from medgr2_operator.cli.attempts import choose_attempts
from medgr2_operator.cli.cluster import cluster
from medgr2_operator.cli.connection import explain
from medgr2_operator.cli.errors import CommandError, parse_stage
from medgr2_operator.cli.installation import install_command
from medgr2_operator.kube.client import ApiError
from medgr2_operator.kube.ephemeral_pod import why_waiting
from medgr2_operator.local.state import StateFile
from medgr2_operator.render.render_context import RenderSettings
from medgr2_operator.render.volume_reader_pod import reader_pod

ROOT = Path(__file__).parents[3]
GOLDEN = Path(__file__).parent / "golden" / "reader.yaml"
runner = CliRunner(env={"COLUMNS": "200", "KUBECONFIG": "/nowhere"})


# -- the commands ------------------------------------------------------------------------------------------------------


def test_both_programs_have_the_commands() -> None:
    names = {"list", "status", "logs", "suspend", "resume", "restart", "approve", "cp", "report", "lineage"}
    names |= {"model", "export", "ask"}
    commands = [command for command in cluster.registered_commands if command.callback]
    assert {command.name or command.callback.__name__ for command in commands if command.callback} == names
    for program in (app, cluster):
        shown = runner.invoke(program, ["--help"]).output
        assert all(f"  {name} " in shown for name in names), shown
    assert "  run " not in runner.invoke(cluster, ["--help"]).output
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["kubectl-medgr2"] == "medgr2_operator.cli.cluster:main"


@pytest.mark.parametrize("name", ["logs", "suspend", "resume", "restart", "approve", "cp", "report", "lineage"])
def test_every_command_takes_what_kubectl_takes(name: str) -> None:
    shown = runner.invoke(cluster, [name, "--help"]).output
    assert all(option in shown for option in ("-n, --namespace", "--context", "--kubeconfig"))


def test_help_imports_no_client() -> None:
    heavy = ["kubernetes", "aiohttp", "pydantic", "yaml", "rich.live", "medgr2_api.cycle"]
    code = (
        "import sys; sys.argv = ['kubectl-medgr2', '--help']\n"
        "from medgr2_operator.cli.cluster import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: kubectl medgr2 ")
    assert done.stdout.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize("arguments", [["suspend", "loop"], ["logs", "loop"], ["cp", "loop:x", "."]])
def test_without_a_cluster_it_says_where_it_looked(arguments: list[str]) -> None:
    done = runner.invoke(app, arguments)
    assert (done.exit_code, done.output) == (
        2, "no kubeconfig at /nowhere: set KUBECONFIG, or give --kubeconfig\n"
    )  # fmt: skip


def test_without_the_client_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['kubernetes'] = None; sys.argv = ['medgr2', 'suspend', 'loop']\n"
        "from medgr2_operator.cli.app import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert done.stderr.splitlines() == ["commands on a cluster need kubernetes:", f"  {install_command('operator')}"]


def test_a_broken_kubeconfig_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config"
    for text, message in (("{", "while parsing"), ("clusters: []", "Expected key current-context"), ("", "NoneType")):
        path.write_text(text)
        done = runner.invoke(app, ["suspend", "loop", "--kubeconfig", str(path)])
        assert done.exit_code == 2
        assert str(path) in done.output
        assert message in done.output


def test_a_cluster_that_does_not_answer_may_come_back(tmp_path: Path) -> None:
    path = tmp_path / "config"
    document = {
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
        "current-context": "x",
    }
    path.write_text(yaml.safe_dump(document))
    done = runner.invoke(app, ["resume", "loop", "--kubeconfig", str(path)])
    assert done.exit_code == 75
    assert "no answer" in done.output
    assert done.output.count("\n") == 1
    other = runner.invoke(app, ["resume", "loop", "--kubeconfig", str(path), "--context", "y"])
    assert other.exit_code == 2
    assert "name y in" in other.output


# -- words -------------------------------------------------------------------------------------------------------------


def test_stages_are_read_or_refused() -> None:
    assert parse_stage("grpo@2") == ("grpo", 2)
    assert parse_stage("prepare") == ("prepare", None)
    with pytest.raises(CommandError, match=r"no stage 'grop' \(did you mean grpo\?\); stages: prepare, "):
        parse_stage("grop@2")
    for text in ("grpo@", "grpo@two", "grpo@-1", "grpo@²"):
        with pytest.raises(CommandError, match="expected STAGE@ITERATION, such as grpo@2"):
            parse_stage(text)


@pytest.mark.parametrize(
    ("status", "message", "text", "code"),
    [
        (
            403,
            'medgr2cycles.medgr2.io "loop" is forbidden: User "jane" cannot patch resource "medgr2cycles" in API group '
            '"medgr2.io" in the namespace "ml"',
            "not allowed: jane may not patch medgr2cycles.medgr2.io in namespace ml",
            2,
        ),
        (
            403,
            'pods is forbidden: User "jane" cannot create resource "pods" in API group "" in the namespace "ml"',
            "not allowed: jane may not create pods in namespace ml",
            2,
        ),
        (403, 'pods "x" is forbidden: exceeded quota: q', 'pods "x" is forbidden: exceeded quota: q', 2),
        (0, "GET /x: no answer", "GET /x: no answer", 75),
        (401, "Unauthorized", "the cluster does not know you (401): sign in again, or check the kubeconfig", 2),
        (422, "spec.restartFrom: Invalid value", "spec.restartFrom: Invalid value", 2),
        (503, "down", "down", 75),
    ],
)
def test_errors_of_the_api_server(status: int, message: str, text: str, code: int) -> None:
    assert explain(ApiError(message, status)) == (text, code)


def stage(name: str, iteration: int, state: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "iteration": iteration, "state": state, "attempt": 1, **more}


def a_cycle(*stages: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"name": "loop"}, "spec": {}, "status": {"stages": list(stages)}}


DONE = stage("prepare", 0, "Succeeded", completionTime="2026-01-01T00:00:01Z")
FAILED = stage("reward", 0, "Failed", completionTime="2026-01-01T00:00:02Z", attempt=3)


@pytest.mark.parametrize(
    ("stages", "asked", "chosen"),
    [
        ([DONE, stage("sft", 1, "Running"), stage("generate", 2, "Pending")], "", ["sft@1", "generate@2"]),
        ([DONE, FAILED], "", ["reward@0"]),
        ([DONE, FAILED, stage("reward", 1, "Succeeded")], "reward", ["reward@1"]),
        ([DONE, FAILED, stage("reward", 1, "Succeeded")], "reward@0", ["reward@0"]),
        ([DONE, stage("sft", 1, "Pending", attempt=0)], "", ["prepare@0"]),
    ],
)
def test_whose_log_is_meant(stages: list[dict[str, Any]], asked: str, chosen: list[str]) -> None:
    assert [f"{key.name}@{key.iteration}" for key in choose_attempts(a_cycle(*stages), asked)] == chosen


def test_which_attempts_log_is_meant() -> None:
    assert choose_attempts(a_cycle(DONE, FAILED), "reward")[0].attempt == 3
    assert choose_attempts(a_cycle(DONE, FAILED), "reward", 2)[0].attempt == 2
    with pytest.raises(CommandError, match="reward@0 has had 3 attempts so far"):
        choose_attempts(a_cycle(DONE, FAILED), "reward", 4)
    with pytest.raises(CommandError, match="sft@1 has not run; there is prepare@0, reward@0"):
        choose_attempts(a_cycle(DONE, FAILED), "sft@1")
    with pytest.raises(CommandError, match="no stage has run yet"):
        choose_attempts(a_cycle(), "")


@pytest.mark.parametrize(
    ("status", "text"),
    [
        ({}, ""),
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "full"}]},
            "Unschedulable: full",
        ),
        (
            {"containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}]},
            "ErrImagePull: no such image",
        ),
        ({"phase": "Failed", "reason": "DeadlineExceeded", "message": "too long"}, "DeadlineExceeded too long"),
    ],
)
def test_why_a_pod_waits(status: dict[str, Any], text: str) -> None:
    assert why_waiting({"status": status}) == text


# -- the pod that reads the volume -------------------------------------------------------------------------------------


def reading(**template: Any) -> dict[str, Any]:
    workspace = {"persistentVolumeClaim": {"claimName": "medgr2-data"}, "subPath": "teams/ml"}
    spec = make_spec(workspace=workspace, template=template)
    cycle = Cycle(metadata=Metadata(name="omnimed", namespace="ml", uid="5d0c1a52"), spec=spec)
    return reader_pod(cycle, "omnimed-read-1234", "medgr2/jobs:test", 600, RenderSettings(image="unused"))


def test_the_reading_pod() -> None:
    text = yaml.safe_dump(reading(), sort_keys=False, width=120)
    if os.environ.get("MEDGR2_UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert GOLDEN.read_text() == text


def test_it_runs_where_the_cycles_pods_run() -> None:
    template: dict[str, Any] = {
        "nodeSelector": {"pool": "cpu"},
        "tolerations": [{"key": "team", "operator": "Exists"}],
        "imagePullSecrets": [{"name": "registry"}],
        "serviceAccountName": "stages",
        "securityContext": {"fsGroup": 1000, "runAsUser": None},
    }
    spec = reading(**template)["spec"]
    assert {key: spec[key] for key in list(template)[:4]} == dict(list(template.items())[:4])
    assert spec["securityContext"]["fsGroup"] == 1000
    assert "runAsUser" not in spec["securityContext"]
    assert spec["automountServiceAccountToken"] is False


# -- lineage -----------------------------------------------------------------------------------------------------------

LINEAGE: dict[str, Any] = {
    "cycle": "loop", "triplet": "t001-000042-03", "iteration": 1,
    "image": {"sha256": "ab" * 32, "path": "images/ab/ab.png", "modality": "CT", "source": "ward",
              "sourcePath": "7.png"},
    "generator": "gemini-3-flash", "prompt": {"paradigm": "Direct", "templateSha256": "feed" * 16},
    "questionType": "finding", "question": "What is it?", "options": ["cyst", "mass"], "answer": "mass",
    "rationale": None, "outcome": "ok", "score": 6.5, "scoredBy": {"stage": "reward@0", "digest": "d" * 64},
    "keep": True, "reasons": [], "seenBy": ["sft@1", "grpo@1"],
}  # fmt: skip


def printed_lineage(capsys: pytest.CaptureFixture[str], **changes: Any) -> list[str]:
    assert lineage.print_lineage(json.dumps({**LINEAGE, **changes}).encode(), False) == 0
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_lineage_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed_lineage(capsys) == [
        "t001-000042-03 of cycle loop, iteration 1",
        "image CT, ward: 7.png, images/ab/ab.png",
        "prompt Direct, template feedfeedfeed",
        "generator gemini-3-flash",
        "question What is it?",
        "options cyst | mass",
        "answer mass",
        "score 6.50, by reward@0",
        "decision kept",
        "seen by sft@1, grpo@1",
    ]


def test_lineage_that_ends_early(capsys: pytest.CaptureFixture[str]) -> None:
    rejected = printed_lineage(capsys, keep=False, reasons=["below_threshold"], seenBy=[])
    assert rejected[-2:] == ["decision rejected: below_threshold", "seen by no policy so far"]
    assert printed_lineage(capsys, score=None, scoredBy=None, keep=None, seenBy=[])[-3:-1] == [
        "score none so far",
        "decision none so far",
    ]
    broken = printed_lineage(capsys, outcome="unparsable", keep=False, reasons=["outcome:unparsable"])
    assert broken[-2:] == ["outcome unparsable", "decision rejected: outcome:unparsable"]
    assert printed_lineage(capsys, image=None, prompt=None, generator=None, outcome=None)[1:] == [
        "score 6.50, by reward@0",
        "decision kept",
        "seen by sft@1, grpo@1",
    ]


def test_lineage_of_all_candidates_comes_as_lines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [row_of(Candidate, triplet_id=f"t{number}") for number in range(3)]
    publish(tmp_path, "generate", 1, tables={Candidate: rows}, cycle="loop")
    assert runner.invoke(app, ["lineage", "loop", "-w", str(tmp_path)]).exit_code == 0
    lines = capfd.readouterr().out.splitlines()
    assert [json.loads(line)["triplet"] for line in lines] == ["t0", "t1", "t2"]


def test_without_parquet_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medgr2_operator.cli.jobs_process.missing", lambda extra: ["pyarrow"])
    done = runner.invoke(app, ["lineage", "loop", "t1", "--workspace", str(tmp_path)])
    assert done.exit_code == 78
    assert done.output.splitlines() == [
        "medgr2 lineage needs packages that are not installed (pyarrow):", f"  {install_command('jobs')}"
    ]  # fmt: skip


def test_report_of_a_local_cycle_is_shown_where_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "cycles/loop/report"
    folder.mkdir(parents=True)
    (folder / "report.md").write_text("#")
    assert runner.invoke(app, ["report", "loop", "-w", str(tmp_path)]).output.startswith(
        f"report: {folder}/report.md\n"
    )
    done = runner.invoke(app, ["report", "loup", "-w", str(tmp_path)])
    assert (done.exit_code, done.output) == (2, f"no report of loup in {tmp_path}; cycles with one: loop\n")


def test_report_and_cp_of_a_local_cycle_copy_as_those_of_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, here = tmp_path / "workspace", tmp_path / "here"
    (workspace / "cycles/loop/report").mkdir(parents=True)
    (workspace / "cycles/loop/report/report.md").write_text("#")
    here.mkdir()
    monkeypatch.chdir(here)
    done = runner.invoke(app, ["report", "loop", ".", "-w", str(workspace)])
    assert done.output.startswith("report: loop-report/report.md\n")
    assert (here / "loop-report/report.md").read_text() == "#"
    done = runner.invoke(app, ["cp", "loop:cycles/loop/report", ".", "-w", str(workspace)])
    assert (done.exit_code, done.output) == (2, f"no cycle 'loop' in {workspace}; there: none\n")
    StateFile(workspace, "loop").save(Cycle.model_validate(tiny_cycle()))
    done = runner.invoke(app, ["cp", "loop:cycles/loop/report", ".", "-w", str(workspace)])
    assert (done.exit_code, done.output) == (0, "report: 1 files, 10240 bytes\n")
    assert (here / "report/report.md").read_text() == "#"
    for path in ("../here", "/etc/passwd"):
        assert runner.invoke(app, ["cp", f"loop:{path}", ".", "-w", str(workspace)]).exit_code == 2
