"""Fetching as a whole: the stage, the command, two sites, kill -9; with models and data of a loopback hub."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from medgr2_api.cycle import Cycle
from medgr2_api.stage_contract import RESULT_PATH_ENV, SECRETS_ENV, StageResult
from medgr2_api.stages import stage_names
from medgr2_api.status import Phase
from medgr2_jobs.data import synthetic_images
from medgr2_jobs.errors import StageError
from medgr2_jobs.fetch import pin_file
from medgr2_jobs.runner.main import execute
from medgr2_jobs.store.artifact import ArtifactReader
from medgr2_jobs.store.rows.prepared import Item
from medgr2_operator.local.executor import Executor, RunObserver
from medgr2_operator.local.runner import Runner
from tests.support.fixtures import prepare_parameters, run_stage, stage_request
from tests.support.hub_fixtures import CHUNK, DATA, FILES, LOADED, content, get, model_files, safetensors
from tests.support.hub_server import HubFault, HubServer, hub_server


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with hub_server() as server:
        server.repository("org/data", FILES, kind="dataset")
        yield server


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HOME", "HF_TOKEN", "HF_ENDPOINT", SECRETS_ENV):
        monkeypatch.delenv(name, raising=False)


def cycle_file(folder: Path, hub: HubServer) -> Path:
    """A cycle that takes its models from the hub."""
    path = folder / "cycle.yaml"
    spec = {
        "iterations": 1,
        "workspace": {"persistentVolumeClaim": {"claimName": "data"}},
        "data": {
            "sources": [
                {"name": "seed", "format": "OmniMedVQA", "uri": f"{DATA}/questions.json", "images": f"{DATA}/images"},
                {"name": "more", "format": "OmniMedVQA", "uri": "data/more"},
            ],
            "fetch": {"hubEndpoint": hub.url},
        },
        "generator": {"openAI": {"model": "m", "baseURL": "http://127.0.0.1:9/v1", "external": False}},
        "rewardModel": {"baseModel": "org/model"},
        "policy": {"baseModel": "hf://org/model"},
    }
    document = {"apiVersion": "medgr2.io/v1alpha1", "kind": "MedGR2Cycle", "metadata": {"name": "c"}, "spec": spec}
    path.write_text(yaml.safe_dump(document))
    return path


def command(file: Path, root: Path, program: str = "medgr2_jobs.fetch") -> list[str]:
    return [sys.executable, "-m", program, str(file), "--workspace", str(root)]


def test_killed_in_the_middle_it_goes_on(hub: HubServer, tmp_path: Path) -> None:
    """kill -9 of the one process takes the other with it; the next run asks only for what was not whole."""
    hub.repository("org/data", {"questions.json": b"[]", "images/b.png": b"b"}, kind="dataset")
    files = {**model_files(), "model-2.safetensors": safetensors() + b"2"}
    hub.repository("org/model", files)
    broken = f"/cdn/{hashlib.sha256(files['model-2.safetensors']).hexdigest()}"
    hub.fault = lambda method, path: HubFault(after=CHUNK + 1, hang=True) if path == broken else None
    root, file = tmp_path / "w", cycle_file(tmp_path, hub)
    process = subprocess.Popen(command(file, root), start_new_session=True)
    folder = pin_file.folder_of(root, "hf://org/model", "model")
    partial = pin_file.scratch_of(folder) / "partial"
    while not (
        len(list(partial.glob("files/*"))) == len(LOADED)
        and any(path.stat().st_size == CHUNK for path in partial.rglob("*.incomplete"))
    ):
        assert process.poll() is None
        time.sleep(0.05)
    (child,) = _children(process.pid)
    asked = list(hub.requests)
    process.kill()
    process.wait()
    _gone(child)
    assert hub.requests == asked  # it did not live to ask again for what hangs
    assert not folder.exists()
    hub.fault = lambda method, path: None
    hub.requests.clear()
    done = subprocess.run(command(file, root), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert content(folder / "files") == {name: files[name] for name in (*LOADED, "model-2.safetensors")}
    assert [request for request in hub.requests if "/api/models/" not in request] == [
        "HEAD /org/model/resolve/" + hub.repositories["model", "org/model"].branches["main"] + "/model-2.safetensors",
        f"GET {broken}",
    ]
    assert not partial.exists()  # nor what the killed one left in it


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _gone(pid: int) -> None:
    """Waits for a process to end."""
    stat = Path(f"/proc/{pid}/stat")
    for _ in range(600):
        try:
            if stat.read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.1)
    raise AssertionError(f"process {pid} lives on without its parent")


def test_the_command_fetches_all_and_says_what(hub: HubServer, tmp_path: Path) -> None:
    model = hub.repository("org/model", model_files())
    root, file = tmp_path / "w", cycle_file(tmp_path, hub)
    run = [sys.executable, "-m", "medgr2_operator.cli.app", "fetch", str(file), "--workspace", str(root)]
    first = subprocess.run(run, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    assert len(lines) == 5
    assert f"policy.baseModel: hf://org/model: 5 files, 10.7 MB, revision {model.branches['main']}" in first.stdout
    assert "data.sources[more].uri: data/more: a path on the volume, nothing to fetch" in lines
    hub.requests.clear()
    assert subprocess.run(run, capture_output=True, text=True, check=False).stdout == first.stdout
    assert hub.requests == []


def test_the_command_tries_all_and_ends_with_the_first_failure(hub: HubServer, tmp_path: Path) -> None:
    root, file = tmp_path / "w", cycle_file(tmp_path, hub)
    done = subprocess.run(command(file, root), capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert "policy.baseModel: hf://org/model: the hub shows no model org/model" in done.stderr
    assert "data.sources[seed].images" in done.stdout
    assert "Traceback" not in done.stderr


def test_the_command_can_be_interrupted(hub: HubServer, tmp_path: Path) -> None:
    hub.fault = lambda method, path: HubFault(after=10_000, hang=True) if path.startswith("/cdn/") else None
    process = subprocess.Popen(command(cycle_file(tmp_path, hub), tmp_path / "w"), stderr=subprocess.PIPE, text=True)
    assert hub.hanging.wait(60)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate()
    assert process.returncode == 128 + signal.SIGINT
    assert "the same command goes on" in told


def models(hub: HubServer | None, **overrides: Any) -> dict[str, Any]:
    """Parameters of a prepare whose models come from the hub, and whose data is drawn."""
    parameters = prepare_parameters(policyBaseModel="hf://org/model", rewardBaseModel="org/model", **overrides)
    if hub is not None:
        parameters["data"]["fetch"] = {"hubEndpoint": hub.url}
    return parameters


def test_a_site_without_network_gets_the_same_digest(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repository("org/model", model_files())
    synthetic_images.write(tmp_path / "drawn", dataset="seed", seed=1, images=20, questions_per_image=2)
    hub.repository("org/seed", content(tmp_path / "drawn"), kind="dataset")
    source = {"name": "seed", "format": "OmniMedVQA", "uri": "hf://org/seed@main"}
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    request = stage_request("prepare", 0, models(hub, data={"sources": [source]}))
    first = run_stage(here, request)
    prepared = ArtifactReader(here, first)
    assert len(prepared.rows(Item)) == 40 + 40
    pins = json.loads(prepared.file("inputs.json").read_text())
    assert [pin["uri"] for pin in pins] == ["hf://org/model", "hf://org/seed@main"]
    assert not any(word in json.dumps(pins) for word in ("127.0.0.1", "localhost", str(tmp_path)))

    shutil.copytree(here / "inputs", there / "inputs")
    shutil.copytree(here / "private", there / "private")  # or names would have other pseudonyms there
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.requests.clear()
    again = stage_request("prepare", 0, models(None, data={"sources": [source]}))
    assert again.input_hash == request.input_hash
    assert run_stage(there, again).output_digest == first.output_digest
    assert hub.requests == []


def test_the_stage_publishes_what_was_fetched_and_no_pickles(hub: HubServer, tmp_path: Path) -> None:
    model = hub.repository("org/model", model_files())
    prepared = ArtifactReader(tmp_path, run_stage(tmp_path, stage_request("prepare", 0, models(hub))))
    for role in ("policy", "reward"):
        assert {path.name for path in prepared.folder_of(f"models/{role}").iterdir()} == LOADED
    (pin,) = json.loads(prepared.file("inputs.json").read_text())
    assert (pin["uri"], pin["revision"]) == ("hf://org/model", model.branches["main"])
    assert len(pin["files"]) == 5


@pytest.mark.parametrize(
    ("status", "code", "reason"), [(503, 75, "TemporaryError"), (404, 78, "ConfigError"), (403, 78, "ConfigError")]
)
def test_the_stage_ends_with_the_codes_of_the_contract(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, code: int, reason: str
) -> None:
    monkeypatch.setenv(RESULT_PATH_ENV, str(tmp_path / "result.json"))
    hub.fault = lambda method, path: HubFault(status=status)
    assert execute(stage_request("prepare", 0, models(hub)), tmp_path) == code
    result = StageResult.model_validate_json((tmp_path / "result.json").read_text())
    assert result.reason == reason
    assert result.message.startswith("policy.baseModel: hf://org/model: ")


def test_a_model_of_an_unknown_family_is_refused_before_anything_is_drawn(hub: HubServer, tmp_path: Path) -> None:
    hub.repository("org/model", {**model_files(), "config.json": b'{"model_type": "llava"}'})
    assert execute(stage_request("prepare", 0, models(hub)), tmp_path) == 78
    assert not (tmp_path / "images").exists()


def test_two_runs_at_the_same_time_fetch_once(hub: HubServer, tmp_path: Path) -> None:
    hub.fault = lambda method, path: HubFault(after=10_000, hang=True) if path.startswith("/cdn/") else None
    found: list[Path | StageError] = []

    def run() -> None:
        try:
            found.append(get(hub, tmp_path))
        except StageError as error:
            found.append(error)

    first, second = threading.Thread(target=run), threading.Thread(target=run)
    first.start()
    assert hub.hanging.wait(60)
    second.start()
    hub.fault = lambda method, path: None
    hub.release.set()
    first.join()
    second.join()
    assert found == [pin_file.folder_of(tmp_path, DATA, "dataset") / "files"] * 2
    assert len([request for request in hub.requests if request.endswith("/api/datasets/org/data")]) == 1


def test_prepare_fetches_in_a_run_whose_forkserver_is_offline(hub: HubServer, tmp_path: Path) -> None:
    """`medgr2 run` forks stages from a process that has read HF_HUB_OFFLINE=1 long before."""
    hub.repository("org/model", model_files())
    others = [stage for stage in stage_names() if stage != "prepare"]
    data = {"sources": [{"name": "seed", "format": "Phantom", "phantom": {"images": 20}}]}
    changes = {
        "data": {**data, "fetch": {"hubEndpoint": hub.url}},
        "pauseBefore": others,
        "generator": {"scripted": {}},
    }
    document = yaml.safe_load(cycle_file(tmp_path, hub).read_text())
    cycle = Cycle.model_validate({**document, "spec": {**document["spec"], **changes}})
    server = (
        "from medgr2_jobs.runner import forkserver;"
        " forkserver.PRELOAD = ('huggingface_hub', 'medgr2_jobs.runner.main'); forkserver.main()"
    )
    root = tmp_path / "w"
    root.mkdir()
    made = Executor(root, cycle, RunObserver())
    Runner([made], RunObserver(), command=(sys.executable, "-c", server)).run()
    assert made.phase is Phase.PAUSED
    assert [path.parent.parent.name for path in root.rglob("manifest.json")] == ["prepare"]
    assert "GET /api/models/org/model" in hub.requests
