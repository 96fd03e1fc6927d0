"""The client of the forkserver: here a script that is slow to say what it started."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from medgr2_operator.local.forkserver_client import SPIN, Exited, ForkserverClient

SLOW = """
import json, subprocess, sys, time
for line in sys.stdin:
    name = json.loads(line)["id"]
    child = subprocess.Popen(["sleep", "60"])
    time.sleep(0.5)
    print(json.dumps({"id": name, "pid": child.pid}), flush=True)
    code = child.wait()
    print(json.dumps({"id": name, "exitCode": code if code >= 0 else 128 - code}), flush=True)
"""


def test_a_signal_reaches_a_stage_whose_process_is_not_known_yet(tmp_path: Path) -> None:
    client = ForkserverClient(tmp_path / "forkserver.log", (), [sys.executable, "-c", SLOW])
    client.start("sft", {}, tmp_path / "sft.log")
    assert client.pid("sft") is None
    client.signal("sft", signal.SIGTERM)
    ended: list[Exited] = []
    began = time.monotonic()
    while not ended and time.monotonic() - began < 30:
        ended = client.wait(0.1)
    assert ended == [Exited("sft", 128 + signal.SIGTERM)]
    client.close()


@pytest.mark.parametrize(("given", "turns"), [({}, SPIN["GOMP_SPINCOUNT"]), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_threads_do_not_spin_for_long_unless_the_user_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], turns: str
) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    program = "import os, sys; print(os.environ['GOMP_SPINCOUNT'], file=sys.stderr); sys.stdin.read()"
    client = ForkserverClient(tmp_path / "forkserver.log", (), [sys.executable, "-c", program])
    client.close()
    assert (tmp_path / "forkserver.log").read_text() == f"{turns}\n"
