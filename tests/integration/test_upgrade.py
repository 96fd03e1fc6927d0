"""An upgrade while generate is half done: a newer contract has more fields, and nothing is paid or made twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import medgr2_api
from medgr2_api import paths
from tests.support.chat_server import Answer, ChatServer, serving
from tests.support.cycle_documents import tiny_cycle
from tests.support.half_fake_forkserver import MEDGR2, RAN

QUESTIONS = 24
#: Fields of a newer version: (module, the class, what it gets). One is read by generate, one by finished stages.
NEWER = (
    ("generator.py", "class Sampling(Model):", '    min_p: float = 0.0\n    """Least probability."""\n'),
    ("reward_model.py", "class Grades(Model):", '    neutral: float = 1.0\n    """Neither nor."""\n'),
    ("data.py", "class Data(Model):", '    max_pages: int | None = None\n    """Of a document."""\n'),
)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving() as running:
        yield running


def newer_contract(folder: Path) -> Path:
    """A copy of the contract with fields that this one does not have; to be put before it on the path."""
    shutil.copytree(Path(medgr2_api.__file__).parent, folder / "medgr2_api")
    for module, head, field in NEWER:
        path = folder / "medgr2_api" / module
        text = path.read_text()
        start = text.index(head)
        at = text.index('"""\n', text.index('"""', start) + 3) + 4  # after the docstring
        path.write_text(text[:at] + "\n" + field + text[at:])
    return folder


def start(root: Path, file: Path, python_path: str = "") -> subprocess.Popen[bytes]:
    """`medgr2 run` with a generate that is real; with another contract before ours, if one is given."""
    command = [*MEDGR2, "run", str(file), "--workspace", str(root), "--plain"]
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "PYTHONPATH": python_path}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finished(process: subprocess.Popen[bytes], code: int) -> None:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output.decode()


def generated(root: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in root.glob("artifacts/generate/*/manifest.json")]


def test_nothing_is_asked_twice_and_nothing_finished_runs_again(tmp_path: Path, server: ChatServer) -> None:
    server.answer = lambda number, body: Answer(delay=0.05)
    generator = {"openAI": {"model": "m", "baseURL": server.url}, "candidates": QUESTIONS, "questionsPerImage": 2}
    file, root = tmp_path / "cycle.yaml", tmp_path / "workspace"
    file.write_text(yaml.safe_dump(tiny_cycle(generator={**generator, "concurrency": 2}, stages=[])))

    before = start(root, file)
    while server.ledger.charged.total() < QUESTIONS // 3:
        assert before.poll() is None, before.communicate()[0].decode()
        time.sleep(0.01)
    before.send_signal(signal.SIGINT)
    finished(before, 130)
    asked = server.ledger.charged.total()
    assert 0 < asked < QUESTIONS, "half done"
    assert not generated(root)
    ran = Counter((root / RAN).read_text().split())
    assert set(ran) == {'"prepare@0"', '"reward@0"', '"evaluate@0"', '"measure@0"'}

    newer = str(newer_contract(tmp_path / "newer"))
    finished(start(root, file, newer), 0)
    assert len(server.ledger.charged) == QUESTIONS
    assert set(server.ledger.charged.values()) == {1}, "no question was asked twice"
    (manifest,) = generated(root)
    assert manifest["parameters"]["sampling"]["minP"] == 0.0, "it is the newer version that went on"
    ran = Counter((root / RAN).read_text().split())
    assert len(ran) == 12
    assert set(ran.values()) == {1}, "no finished stage ran again"

    # even a cycle that has forgotten what it did finds all of it by the hashes
    (root / paths.cycle("loop") / paths.STATE).unlink()
    finished(start(root, file, newer), 0)
    assert Counter((root / RAN).read_text().split()) == ran
    assert server.ledger.charged.total() == QUESTIONS
