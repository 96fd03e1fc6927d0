"""The forkserver as its parent sees it: orders on stdin, replies on stdout, nothing outlives the parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medgr2_api.stage_contract import REQUEST_ENV, RESULT_PATH_ENV, WORKSPACE_ENV, StageResult
from tests.support.contract_fixtures import request
from tests.support.fake_forkserver import COMMAND


class Forkserver:
    """A real forkserver, with stages of six steps."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "FAKE_STEP_SECONDS": "5"},
        )
        assert self.reply() == {"ready": True}

    def order(self, name: str, **environment: str) -> bytes:
        document = {"id": name, "env": environment, "log": str(self.root / f"{name}.log")}
        return json.dumps(document).encode() + b"\n"

    def send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)

    def reply(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def start_stage(self) -> int:
        """Starts one that runs for half a minute, and waits until it does."""
        workspace = self.root / "workspace"
        workspace.mkdir()
        environment = {
            REQUEST_ENV: json.dumps(request().dump()),
            WORKSPACE_ENV: str(workspace),
            RESULT_PATH_ENV: str(self.root / "result.json"),
        }
        self.send(self.order("long", **environment))
        pid = self.reply()["pid"]
        while not (workspace / "test" / "ledger.jsonl").exists():
            time.sleep(0.02)
        return int(pid)


@pytest.fixture
def forkserver(tmp_path: Path) -> Iterator[Forkserver]:
    made = Forkserver(tmp_path)
    with made.process:
        yield made
        made.process.kill()


def test_orders_may_come_in_pieces_and_several_at_once(forkserver: Forkserver) -> None:
    text = forkserver.order("a") + forkserver.order("b") + forkserver.order("c")
    forkserver.send(text[:20])
    time.sleep(0.3)
    forkserver.send(text[20:-5])
    time.sleep(0.3)
    forkserver.send(text[-5:])
    replies = [forkserver.reply() for _ in range(6)]
    assert {reply["id"] for reply in replies if "pid" in reply} == {"a", "b", "c"}
    assert {reply["id"]: reply["exitCode"] for reply in replies if "pid" not in reply} == dict.fromkeys("abc", 2)
    assert "MEDGR2_STAGE_REQUEST is not set" in (forkserver.root / "b.log").read_text()


def test_a_killed_stage_is_told_by_its_signal(forkserver: Forkserver) -> None:
    os.kill(forkserver.start_stage(), signal.SIGKILL)
    assert forkserver.reply() == {"id": "long", "exitCode": 128 + signal.SIGKILL}


def test_when_its_parent_is_gone_the_stages_checkpoint(forkserver: Forkserver) -> None:
    forkserver.start_stage()
    assert forkserver.process.stdin is not None
    forkserver.process.stdin.close()
    began = time.monotonic()
    assert forkserver.process.wait(60) == 0
    assert time.monotonic() - began < 20, "after the step it was in, not after all six"
    assert StageResult.model_validate_json((forkserver.root / "result.json").read_text()).reason == "Checkpointed"


def test_when_the_forkserver_is_gone_the_stages_checkpoint(forkserver: Forkserver) -> None:
    forkserver.start_stage()
    forkserver.process.kill()
    began = time.monotonic()
    while not (forkserver.root / "result.json").exists():
        time.sleep(0.05)
        assert time.monotonic() - began < 20, "after the step it was in, not after all six"
    assert StageResult.model_validate_json((forkserver.root / "result.json").read_text()).reason == "Checkpointed"
