"""Trainings are followed: what TensorBoard, MLflow and W&B read back of them, and that none of it can stop one."""

from __future__ import annotations

import base64
import json
import logging
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medgr2_api import paths
from medgr2_api.stage_contract import SECRETS_ENV, ExitCode, StageRequest
from medgr2_api.tracking import Tracking
from medgr2_jobs.runner.main import execute
from medgr2_jobs.store.artifact import ArtifactReader
from medgr2_jobs.training.stage_callback import StageCallback
from medgr2_jobs.training.tracking.tracked_run import TrackedRun
from medgr2_jobs.training.tracking.tracking_callback import LOST, TrackingCallback
from tests.support import policy_fixtures, wandb_server
from tests.support.policy_fixtures import PolicyWorkspace
from tests.support.wandb_runs import records

TRAINER = {"max_steps": 5, "per_device_train_batch_size": 4, "save_steps": 100}
BOTH = Tracking.model_validate({"mlflow": {}, "wandb": {"project": "loops"}})
TOKEN = "a-token-that-nobody-guesses"
KEY = "0123456789abcdef" * 3  # as long as W&B wants one


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> PolicyWorkspace:
    return policy_fixtures.build(tmp_path_factory.mktemp("workspace"))


def request_of(workspace: PolicyWorkspace, attempt: int = 1, tracking: Tracking | None = BOTH) -> StageRequest:
    request = workspace.sft(TRAINER, name="followed", attempt=attempt)
    return request.model_copy(update={"tracking": tracking})


@pytest.fixture(scope="module")
def resumed(workspace: PolicyWorkspace) -> ArtifactReader:
    """Two attempts: the first one is asked to stop after its second step, and ends after the third."""
    stop, log = threading.Event(), StageCallback.on_log

    def ask(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == 2:
            stop.set()
        log(self, args, state, control, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageCallback, "on_log", ask)
        assert execute(request_of(workspace), workspace.root, stop) == ExitCode.CHECKPOINTED
    reader = workspace.run(request_of(workspace, 2))
    assert reader is not None
    return reader


def losses(reader: ArtifactReader) -> dict[int, float]:
    """Step → loss, as the stage publishes it."""
    log = json.loads(reader.file("log.json").read_text())
    return {entry["step"]: entry["loss"] for entry in log if "loss" in entry}


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def test_tensorboard_reads_a_folder_for_each_attempt(workspace: PolicyWorkspace, resumed: ArtifactReader) -> None:
    folder = workspace.root / paths.tensorboard("world")
    read = {path.name: events(path) for path in folder.iterdir()}
    assert read.keys() == {"i001-sft-a1-s0", "i001-sft-a2-s0"}
    told = [
        {event.step: event.value for event in read[f"i001-sft-a{attempt}-s0"].Scalars("train/loss")}
        for attempt in (1, 2)
    ]
    assert [sorted(one) for one in told] == [[1, 2, 3], [4, 5]], "an attempt goes on where the last one stopped"
    assert told[0] | told[1] == pytest.approx(losses(resumed))
    assert {"train/learning_rate", "train/grad_norm"} <= set(read["i001-sft-a2-s0"].Tags()["scalars"])


def test_mlflow_reads_linked_runs(workspace: PolicyWorkspace, resumed: ArtifactReader) -> None:
    first, second = runs(workspace)
    assert [first.info.run_name, second.info.run_name] == ["world/sft@1/1", "world/sft@1/2"]
    assert [first.info.status, second.info.status] == ["KILLED", "FINISHED"]
    assert first.data.tags["medgr2.input_hash"] == second.data.tags["medgr2.input_hash"] == resumed.manifest.input_hash
    assert second.data.params["max_steps"] == "5"
    history = mlflow.MlflowClient(tracking_uri(workspace)).get_metric_history(second.info.run_id, "loss")
    expected = {step: loss for step, loss in losses(resumed).items() if step > 3}
    assert {metric.step: metric.value for metric in history} == pytest.approx(expected)


def tracking_uri(workspace: PolicyWorkspace) -> str:
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    return (workspace.root / paths.mlflow("world")).as_uri()


def runs(workspace: PolicyWorkspace) -> list[Run]:
    client = mlflow.MlflowClient(tracking_uri(workspace))
    experiment = client.get_experiment_by_name("medgr2")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    return list(found)


def test_wandb_reads_linked_runs(workspace: PolicyWorkspace, resumed: ArtifactReader) -> None:
    told = [records(path) for path in sorted((workspace.root / paths.wandb("world")).glob("offline-run-*/run-*.wandb"))]
    started = [next(record.run for record in some if record.WhichOneof("record_type") == "run") for some in told]
    assert [run.display_name for run in started] == ["world/sft@1/1", "world/sft@1/2"]
    assert {run.run_group for run in started} == {"world/sft@1"}
    assert {(run.project, run.host) for run in started} == {("loops", "")}
    figures: dict[int, float] = {}
    for record in told[1]:
        entry = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        if "train/loss" in entry:
            figures[entry["train/global_step"]] = entry["train/loss"]
    assert figures == pytest.approx({step: loss for step, loss in losses(resumed).items() if step > 3})
    assert [record.exit.exit_code for some in told for record in some if record.HasField("exit")] == [1, 0]


def test_what_is_told_names_no_folder_picture_or_question(workspace: PolicyWorkspace, resumed: ArtifactReader) -> None:
    rows = [row for row in workspace.candidates if row.question][:5]
    hidden = [str(workspace.root), f"{os.uname().nodename}\n"]
    hidden += [text for row in rows for text in (row.image_sha256, row.question, row.response)]
    sent = [*(workspace.root / paths.wandb("world")).glob("*/run-*.wandb")]
    sent += [path for path in (workspace.root / paths.tensorboard("world")).rglob("*") if path.is_file()]
    sent += [path for path in (workspace.root / paths.mlflow("world")).glob("*/*/*/*") if path.is_file()]
    assert len(sent) > 50
    for path in sent:
        text = path.read_bytes()
        assert not [word for word in hidden if word.encode() in text], path


def test_who_follows_changes_no_byte(workspace: PolicyWorkspace, resumed: ArtifactReader) -> None:
    request = workspace.sft(TRAINER, name="alone")
    alone = workspace.run(request)
    assert alone is not None
    assert alone.digest == resumed.digest
    assert LOST not in resumed.manifest.usage
    assert "MLFLOW_DISABLE_TELEMETRY" not in os.environ


def test_grpo_is_followed_too(workspace: PolicyWorkspace) -> None:
    request = workspace.grpo(name="followed")
    assert workspace.run(request) is not None
    folder = workspace.root / paths.tensorboard("world") / "i001-grpo-a1-s0"
    assert [event.step for event in events(folder).Scalars("train/reward")] == [1, 2, 3, 4]


@pytest.fixture
def refusing() -> Iterator[tuple[str, list[str | None]]]:
    """A server that fails every time: its address, and what credentials it was shown."""
    shown: list[str | None] = []

    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown.append(self.headers.get("Authorization"))
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            """Not on the terminal."""

    server = HTTPServer(("127.0.0.1", 0), Refuses)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", shown
    server.shutdown()
    server.server_close()


def test_a_server_that_fails_costs_figures_and_no_training(
    workspace: PolicyWorkspace,
    refusing: tuple[str, list[str | None]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    address, shown = refusing
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "token").write_text(TOKEN)
    monkeypatch.setenv(SECRETS_ENV, str(tmp_path))
    server = {"trackingURI": address, "tokenSecretRef": {"name": "mlflow", "key": "token"}}
    request = workspace.sft(TRAINER, name="unfollowed")
    reader = workspace.run(request.model_copy(update={"tracking": Tracking.model_validate({"mlflow": server})}))
    assert reader is not None
    assert reader.manifest.usage[LOST] == 7, "the beginning, five steps and the end"
    assert f"Bearer {TOKEN}" in shown
    assert "MLFLOW_TRACKING_TOKEN" not in os.environ
    told = [record.getMessage() for record in caplog.records if record.name.startswith("medgr2_jobs.training.tracking")]
    assert len(told) == 1
    assert "MLflow does not take the figures" in told[0]
    assert TOKEN not in caplog.text


@pytest.mark.parametrize("breaks", [False, True])
def test_wandb_s_server_is_told_as_the_training_goes(
    workspace: PolicyWorkspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: bool
) -> None:
    """One that fails from the third step on does not stop it, nor keep its end waiting."""
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "key").write_text(KEY)
    monkeypatch.setenv(SECRETS_ENV, str(tmp_path))
    log = StageCallback.on_log
    with wandb_server.serving() as server:

        def breaking(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
            server.broken = breaks and state.global_step >= 3
            log(self, args, state, control, **more)

        monkeypatch.setattr(StageCallback, "on_log", breaking)
        key = {"name": "wandb", "key": "key"}
        online = {"wandb": {"mode": "Online", "baseURL": server.url, "apiKeySecretRef": key}}
        request = workspace.sft(TRAINER, name=f"online {breaks}")
        reader = workspace.run(request.model_copy(update={"tracking": Tracking.model_validate(online)}))
        assert reader is not None
        assert reader.manifest.usage["wallSeconds"] < 120
        assert server.authorizations == {f"Basic {base64.b64encode(f'api:{KEY}'.encode()).decode()}"}
        assert (server.buckets[0]["displayName"], server.buckets[0]["groupName"]) == ("world/sft@1/1", "world/sft@1")
        hidden = (str(workspace.root), workspace.training[0].image_sha256)
        assert not [word for word in hidden for body in server.bodies if word.encode() in body]
        if not breaks:
            told = {row["train/global_step"]: row["train/loss"] for row in server.history if "train/loss" in row}
            assert told == pytest.approx(losses(reader))


def test_no_online_server_no_secret_no_folder(
    workspace: PolicyWorkspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """All three trackers fail, each for another reason."""
    monkeypatch.setenv(SECRETS_ENV, str(tmp_path))
    reference = {"name": "none", "key": "none"}
    tracking = {
        "mlflow": {"trackingURI": "http://127.0.0.1:9", "tokenSecretRef": reference},
        "wandb": {"mode": "Online", "baseURL": "http://127.0.0.1:9", "apiKeySecretRef": reference},
    }
    request = workspace.sft(TRAINER, name="nothing there")
    request = request.model_copy(update={"attempt": 9, "tracking": Tracking.model_validate(tracking)})
    TrackedRun(request, workspace.root).tensorboard.write_text("in the way")
    reader = workspace.run(request)
    assert reader is not None
    assert reader.manifest.usage[LOST] == 21
    assert caplog.text.count("does not take the figures") == 3
    assert caplog.text.count("secret 'none' has no key 'none'") == 2


def test_a_tracker_that_failed_is_left_alone_for_longer_each_time() -> None:
    now, asked = [0.0], []

    class Fails:
        name = "it"

        def open(self) -> Any:
            asked.append(now[0])
            raise OSError("gone")

        def close(self, ending: str) -> None: ...

    usage: dict[str, float] = {}
    callback = TrackingCallback(Fails(), usage, clock=lambda: now[0])  # type: ignore[arg-type]
    for second in range(0, 600, 10):
        now[0] = float(second)
        callback.on_log(None, None, None, {"loss": 1.0})  # type: ignore[arg-type]
    assert asked == [0, 60, 180, 360]
    assert usage == {LOST: 60}


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
