"""Stages in processes of their own, for the contract's tests."""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

from medgr2_api import paths
from medgr2_api.stage_contract import (
    REQUEST_ENV,
    RESULT_MAX_BYTES,
    RESULT_PATH_ENV,
    WORKSPACE_ENV,
    ArtifactRef,
    CycleRef,
    StageRequest,
    StageResult,
)
from tests.support import fake_stages
from tests.support.fork_runner import ForkedProgram

HASH = "c0ffee"
PARAMETERS = {"seed": 1, "shards": 1, "answerFormat": "Letter"}
_NUMBERS = itertools.count()


def request(**fields: Any) -> StageRequest:
    """A request for the fake stage."""
    fields = {
        "cycle": CycleRef(name="test", uid="uid-1"),
        "iteration": 1,
        "stage": "score",
        "input_hash": HASH,
        "parameters": PARAMETERS,
        **fields,
    }
    return StageRequest(**fields)


def start(root: Path, asked: StageRequest | str, *arguments: str) -> ForkedProgram:
    """Starts a fake stage with a request, or with a text in its place."""
    text = asked if isinstance(asked, str) else json.dumps(asked.dump())
    environment = {
        **os.environ,
        REQUEST_ENV: text,
        WORKSPACE_ENV: str(root),
        RESULT_PATH_ENV: str(root.parent / "result.json"),
    }
    out = root.parent / f"stage-{next(_NUMBERS)}.log"
    return ForkedProgram(fake_stages.main, arguments, environment=environment, out=out)


def finish(process: ForkedProgram, root: Path) -> tuple[int, StageResult, str]:
    """Waits for its end: exit code, result (exit code -1: none was left) and output."""
    output, _ = process.communicate(timeout=60)
    path = root.parent / "result.json"
    text = path.read_text() if path.exists() else '{"exitCode": -1}'
    assert len(text.encode()) <= RESULT_MAX_BYTES
    path.unlink(missing_ok=True)
    assert process.returncode is not None
    return process.returncode, StageResult.model_validate_json(text), output.decode()


def run(root: Path, asked: StageRequest | str, *arguments: str) -> tuple[int, StageResult, str]:
    """Starts a stage and waits for its end."""
    return finish(start(root, asked, *arguments), root)


def until(path: Path, process: ForkedProgram) -> None:
    """Waits for a file that the process makes."""
    deadline = time.monotonic() + 30
    while not path.exists():
        assert process.poll() is None, process.out.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def artifact(root: Path) -> Path:
    """Where the fake stage publishes."""
    return root / paths.artifact("score", HASH)


def ref(result: StageResult) -> ArtifactRef:
    """The reference to what it published."""
    path = str(paths.artifact("score", HASH))
    return ArtifactRef(stage="score", iteration=1, path=path, output_digest=result.output_digest)


def names(folder: Path) -> set[str]:
    """What is in a folder."""
    return {path.name for path in folder.iterdir()}
