"""The operator's own log, events and what it reads of pods: no secret, no values of local variables."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from medgr2_api import redaction
from medgr2_operator.kube.events import EventRecorder
from medgr2_operator.plan.types import Event
from medgr2_operator.runtime import logging_setup

SECRET = "sk-7fQx9PzL2mVw8RtY4nBk"


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    logging_setup.configure("INFO")
    yield logging.getLogger("medgr2_operator.test")
    root.handlers[:] = before
    root.setLevel(level)


def test_no_line_of_the_log_shows_a_secret(log: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    logging_setup.configure("INFO")  # with the stream of now
    redaction.register(SECRET)
    try:
        patient = "Erika Mustermann"
        raise ValueError(f"Illegal header value {f'Bearer {SECRET}'.encode()!r}")
    except ValueError:
        log.exception("request with %s failed", SECRET)
    written = capsys.readouterr().err
    assert patient not in written
    assert SECRET not in written
    (line,) = written.splitlines()
    entry = json.loads(line)
    assert entry["event"] == "request with *** failed"
    assert entry["exception"][0]["exc_value"] == "Illegal header value b'Bearer ***'"


class _Client:
    """Takes what is created."""

    def __init__(self) -> None:
        self.created: list[dict[str, Any]] = []

    async def create(self, resource: object, manifest: dict[str, Any]) -> None:
        self.created.append(manifest)


def test_no_event_shows_a_secret() -> None:
    redaction.register(SECRET)
    client = _Client()
    cycle = {
        "apiVersion": "v1", "kind": "x", "metadata": {"name": "c", "namespace": "n", "uid": "u", "resourceVersion": "1"}
    }  # fmt: skip
    asyncio.run(EventRecorder(client).record(cycle, Event("Warning", "Failed", f"key {SECRET[:15]}…")))
    assert client.created[0]["message"] == "key ***…"
