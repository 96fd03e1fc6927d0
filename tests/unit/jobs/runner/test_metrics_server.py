"""A stage's own port, and the part of a pod in a sharded Job."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from medgr2_api import paths
from medgr2_api.stage_contract import PROGRESS_PORT_ENV, CycleRef, Progress, Shard, StageRequest
from medgr2_jobs.runner import main, metrics_server
from medgr2_jobs.runner.metrics_server import FIGURES, serve_metrics

REQUEST = StageRequest(cycle=CycleRef(name="loop", uid="u"), iteration=2, stage="grpo", input_hash="h", parameters={})
FILE = paths.progress("loop", "i002-grpo-a1-s0")


def get(port: int | None, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=300) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


def tell(root: Path, **fields: object) -> None:
    (root / FILE).parent.mkdir(parents=True, exist_ok=True)
    (root / FILE).write_text(json.dumps(Progress(**fields).dump()))


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(PROGRESS_PORT_ENV, "0")
    with serve_metrics(REQUEST, tmp_path) as found:
        yield found


def test_progress_is_what_the_stage_last_said(port: int, tmp_path: Path) -> None:
    assert json.loads(get(port, "/progress")[1])["phase"] == "starting"
    tell(tmp_path, phase="grpo", step=3, total=9, eta_seconds=12.5, metrics={"reward": 0.5})
    assert Progress.model_validate_json(get(port, "/progress")[1]).step == 3
    assert get(port, "/elsewhere")[0] == 404


def idle(port: int) -> socket.socket:
    """A connection that says nothing."""
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def test_those_who_connect_and_say_nothing_keep_nobody_out(port: int) -> None:
    before = threading.active_count()
    silent = [idle(port) for _ in range(100)]
    assert get(port, "/progress")[0] == 200
    assert threading.active_count() - before <= metrics_server.MOST_CONNECTIONS + 2
    for connection in silent:
        connection.close()


def test_a_connection_ends_however_little_by_little_it_sends(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "CONNECTION_SECONDS", 0.5)
    began = time.monotonic()
    with idle(port) as slow, suppress(ConnectionError):  # reset, or a broken pipe
        while time.monotonic() - began < 20:
            slow.sendall(b"X")
            time.sleep(0.05)
    assert time.monotonic() - began < 10


def test_a_connection_that_says_nothing_is_ended(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "CONNECTION_SECONDS", 0.5)
    before = threading.active_count()
    with idle(port) as silent:
        assert silent.recv(1) == b""
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_metrics_are_prometheus(port: int, tmp_path: Path) -> None:
    before = time.time()
    figures = dict.fromkeys(FIGURES, 0.5)
    tell(tmp_path, phase="grpo", step=3, total=9, eta_seconds=12.5, metrics={**figures, "a figure of no use": 1.0})
    families = {family.name: family for family in text_string_to_metric_families(get(port, "/metrics")[1])}
    labels = {"cycle": "loop", "stage": "grpo", "iteration": "2"}
    values = {}
    for family in families.values():
        [sample] = family.samples
        assert sample.labels == labels
        values[sample.name] = sample.value
    assert values.pop("medgr2_stage_progress_timestamp_seconds") >= before - 1
    assert values == {
        "medgr2_stage_steps": 3,
        "medgr2_stage_steps_planned": 9,
        "medgr2_stage_eta_seconds": 12.5,
        **{name: 0.5 for name, _ in FIGURES.values()},
    }
    assert {families["medgr2_stage_tokens"].type, families["medgr2_stage_loss"].type} == {"counter", "gauge"}


def test_a_stage_that_said_nothing_yet_has_metrics(port: int) -> None:
    text = get(port, "/metrics")[1]
    assert 'medgr2_stage_progress_timestamp_seconds{cycle="loop",iteration="2",stage="grpo"} 0.0' in text
    assert "medgr2_stage_loss" not in text


def test_a_torn_file_is_no_failure(port: int, tmp_path: Path) -> None:
    tell(tmp_path, step=1)
    (tmp_path / FILE).write_text('{"step": ')
    assert get(port, "/progress")[0] == 200


def test_what_an_earlier_attempt_said_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tell(tmp_path, phase="old", step=8, total=9)
    monkeypatch.setenv(PROGRESS_PORT_ENV, "0")
    with serve_metrics(REQUEST, tmp_path) as found:
        assert json.loads(get(found, "/progress")[1])["phase"] == "starting"


def test_no_port_is_opened_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PROGRESS_PORT_ENV, raising=False)
    with serve_metrics(REQUEST, tmp_path) as found:
        assert found is None


def test_a_port_in_use_costs_sight_not_work(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(PROGRESS_PORT_ENV, str(port))
    with serve_metrics(REQUEST, tmp_path) as found:
        assert found is None
    assert f"port {port}" in caplog.text


def test_a_pod_takes_its_part_from_its_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(main.INDEX_ENV, "3")
    sharded = REQUEST.model_copy(update={"shard": Shard(index=0, count=4)})
    assert main._shard_of_pod(sharded).shard == Shard(index=3, count=4)
    assert main._shard_of_pod(REQUEST).shard == Shard(), "of torchrun's pods the index is a rank"
    monkeypatch.delenv(main.INDEX_ENV)
    assert main._shard_of_pod(sharded).shard == Shard(index=0, count=4)
