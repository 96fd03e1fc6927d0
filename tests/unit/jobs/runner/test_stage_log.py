"""What a stage logs, as text and as JSON: start, inputs, progress, what was published, errors; and no secret."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.support import jobs_fixtures
from tests.support.stage_registry import stub

from medgr2_api import redaction, stages
from medgr2_api.stage_contract import ArtifactRef, StageRequest
from medgr2_jobs.runner import main, stage_log
from medgr2_jobs.runner.context import StageContext, StageOutcome
from medgr2_jobs.store.rows.candidates import Candidate

SECRET = "sk-7fQx9PzL2mVw8RtY4nBk"


def request(inputs: dict[str, ArtifactRef] | None = None) -> StageRequest:
    parameters = {"seed": 1, "shards": 1, "answerFormat": "Letter"}
    return jobs_fixtures.request("score", 3, parameters, inputs or {}, attempt=2)


def ran(root: Path, monkeypatch: pytest.MonkeyPatch, code: object, inputs: dict[str, ArtifactRef] | None = None) -> int:
    monkeypatch.setitem(stages._STAGES, "score", stub("score", "stub_stage", "x.bin"))
    monkeypatch.setitem(sys.modules, "stub_stage", SimpleNamespace(run=code))
    root.mkdir(exist_ok=True)
    return main.execute(request(inputs), root)


def good(ctx: StageContext) -> StageOutcome:
    for step in range(500):
        ctx.progress("score", step, 500, loss=0.5)
    ctx.progress("write", 0, 0)
    ctx.writer.path("x.bin").write_bytes(b"x")
    return StageOutcome(counters={"rows": 500.0})


def bad(ctx: StageContext) -> StageOutcome:
    redaction.register(SECRET)
    raise ValueError(f"Illegal header value {f'Bearer {SECRET}'.encode()!r}\n2026 INFO a forged line\x1b[2J")


def test_every_stage_says_what_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(stage_log.IN_CLUSTER_ENV, raising=False)
    assert ran(tmp_path / "w", monkeypatch, good) == 0
    lines = capfd.readouterr().err.splitlines()
    assert all(" INFO score@3: " in line for line in lines)
    told = [line.split(": ", 1)[1] for line in lines]
    assert told[0] == f"attempt 2 starts; it publishes to artifacts/score/{request().input_hash}"
    assert told[1:3] == ["score: 0/500, loss 0.5", "write: 0"]
    assert told[3].startswith("published 1 files, 1 bytes: ")
    assert told[4].startswith("Succeeded: output digest ")
    assert len(told) == 5, "progress is told now and then, not at each step"


def test_in_a_cluster_each_line_is_an_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(stage_log.IN_CLUSTER_ENV, "10.0.0.1")
    monkeypatch.setattr(stage_log, "INTERVAL", 0.0)
    assert ran(tmp_path / "w", monkeypatch, good) == 0
    entries = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert {(entry["stage"], entry["iteration"], entry["attempt"]) for entry in entries} == {("score", 3, 2)}
    assert {entry["cycle"] for entry in entries} == {request().cycle.name}
    assert entries[0]["inputHash"] == request().input_hash
    steps = [entry for entry in entries if entry.get("phase") == "score"]
    assert steps[0]["metrics"] == {"loss": 0.5}
    assert entries[-2]["bytes"] == 1
    assert entries[-1]["metrics"] == {"rows": 500.0}
    assert entries[-1]["exitCode"] == 0


def test_each_input_is_told_with_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def reads(ctx: StageContext) -> StageOutcome:
        for _ in range(2):
            ctx.input("candidates")
        return good(ctx)

    root = tmp_path / "w"
    monkeypatch.setenv(stage_log.IN_CLUSTER_ENV, "10.0.0.1")
    made = jobs_fixtures.publish(root, "generate", {Candidate: []}, iteration=3)
    capfd.readouterr()
    assert ran(root, monkeypatch, reads, {"candidates": made}) == 0
    entries = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [(entry["outputDigest"], entry["rows"]) for entry in entries if entry.get("role") == "candidates"] == [
        (made.output_digest, {"candidates.parquet": 0})
    ]


def test_a_loss_that_diverged_is_no_broken_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def diverges(ctx: StageContext) -> StageOutcome:
        ctx.progress("score", 1, 2, loss=float("nan"), reward=float("-inf"))
        return good(ctx)

    monkeypatch.setenv(stage_log.IN_CLUSTER_ENV, "10.0.0.1")
    assert ran(tmp_path / "w", monkeypatch, diverges) == 0
    lines = capfd.readouterr().err.splitlines()
    entries = [json.loads(line, parse_constant=pytest.fail) for line in lines]  # NaN is a word of Python's JSON alone
    told, *_ = [entry["metrics"] for entry in entries if entry.get("phase") == "score"]
    assert told == {"loss": "nan", "reward": "-inf"}


@pytest.mark.parametrize("cluster", [True, False])
def test_an_error_has_its_traceback_and_no_secret_and_no_line_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], cluster: bool
) -> None:
    if cluster:
        monkeypatch.setenv(stage_log.IN_CLUSTER_ENV, "10.0.0.1")
    else:
        monkeypatch.delenv(stage_log.IN_CLUSTER_ENV, raising=False)
    assert ran(tmp_path / "w", monkeypatch, bad) == 1
    written = capfd.readouterr().err
    assert SECRET not in written
    assert "\x1b" not in written
    assert "Illegal header value b'" in written
    if cluster:
        entries = [json.loads(line) for line in written.splitlines()]
        assert [entry["level"] for entry in entries] == ["info", "error", "error"]
        assert "Traceback" in entries[1]["exception"]
        assert entries[2]["reason"] == "ValueError"
    else:
        assert "Traceback" in written


def test_a_message_is_one_line(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(stage_log.IN_CLUSTER_ENV, raising=False)
    with stage_log.written(request()):
        logging.getLogger("medgr2_jobs.x").info("the model says %s", "a\n2026 INFO score@3: forged\x1b[2J")
        logging.getLogger("a.library").warning("as libraries do")
        logging.getLogger("a.library").info("not this")
    logging.getLogger("medgr2_jobs.x").info("nor this")
    first, second = capfd.readouterr().err.splitlines()
    assert first.endswith(r"INFO score@3: the model says a\n2026 INFO score@3: forged\u001b[2J")
    assert second.endswith("WARNING score@3: as libraries do")
