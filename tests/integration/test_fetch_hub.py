"""Fetching from a hub: the real client against a server that speaks its protocol."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medgr2_api.stage_contract import SECRETS_ENV
from medgr2_jobs import fetch
from medgr2_jobs.errors import Checkpointed, ConfigError, DiskFull, TemporaryError
from medgr2_jobs.fetch import pin_file
from tests.support.fetch_fixtures import context, reference, secrets
from tests.support.hub_fixtures import CHUNK, DATA, FILES, LOADED, WHAT, content, get, model_files, safetensors
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


# -- what is fetched ---------------------------------------------------------------------------------------------------


def test_a_dataset_is_fetched_whole_and_pinned(hub: HubServer, tmp_path: Path) -> None:
    folder = get(hub, tmp_path)
    assert content(folder) == FILES
    fetched = pin_file.load(folder.parent, DATA, "dataset")
    assert fetched is not None
    assert fetched.revision == hub.repositories["dataset", "org/data"].branches["main"]
    assert [file.path for file in fetched.files] == sorted(FILES)
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert hub.authorizations == {""}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/questions.json", "questions.json"),
        ("/images", {"a.png": "images/a.png", "b.png": "images/b.png", "deep/c.png": "images/deep/c.png"}),
        ("@main/images/deep/", {"c.png": "images/deep/c.png"}),
    ],
)
def test_a_part_of_a_repository(hub: HubServer, tmp_path: Path, path: str, expected: Any) -> None:
    found = get(hub, tmp_path, DATA + path)
    if isinstance(expected, str):
        assert (found.name, found.read_bytes()) == (expected, FILES[expected])
    else:
        assert content(found) == {name: FILES[source] for name, source in expected.items()}
    asked = {request.rpartition("/")[2] for request in hub.requests if request.startswith("HEAD")}
    assert "README.md" not in asked  # nothing else is downloaded


def test_the_branch_may_move_on_what_was_fetched_stays(hub: HubServer, tmp_path: Path) -> None:
    folder = get(hub, tmp_path)
    repository = hub.repositories["dataset", "org/data"]
    first = repository.branches["main"]
    repository.commit({"questions.json": b"[]"})
    hub.requests.clear()
    assert content(get(hub, tmp_path)) == FILES
    assert hub.requests == []
    assert content(get(hub, tmp_path / "new")) == {"questions.json": b"[]"}
    assert content(get(hub, tmp_path / "new", f"{DATA}@{first}")) == FILES
    assert folder.parent.name in [path.name for path in (tmp_path / "new/inputs").iterdir()]


def test_offline_what_was_fetched_is_used(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=r"HF_HUB_OFFLINE is set: run `medgr2 fetch` .* copy inputs/datasets-org-"):
        get(hub, tmp_path)
    assert hub.requests == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    get(hub, tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.requests.clear()
    assert content(get(hub, tmp_path)) == FILES
    assert hub.requests == []


def test_of_a_model_only_what_may_be_loaded(hub: HubServer, tmp_path: Path) -> None:
    hub.repository("org/model", model_files())
    folder = fetch.local_path(context(tmp_path, {"hubEndpoint": hub.url}), "org/model", "policy.baseModel", "model")
    fetched = content(folder)
    assert set(fetched) == LOADED
    assert fetched["model.safetensors"] == safetensors()
    assert not [request for request in hub.requests if request.endswith((".bin", ".py"))]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b'{"model_type": "llava"}', "model type 'llava' is not supported; supported: .*gemma3"),
        (b'{"model_type": "internvl_chat"}', "take the repository that ends in -hf"),
        (b"[]", "model type None is not supported"),
        (b"{", "config.json is not JSON"),
    ],
)
def test_a_model_of_an_unknown_family_is_refused_before_its_weights_are_fetched(
    hub: HubServer, tmp_path: Path, config: bytes, message: str
) -> None:
    hub.repository("org/model", {**model_files(), "config.json": config})
    with pytest.raises(ConfigError, match=message):
        fetch.local_path(context(tmp_path, {"hubEndpoint": hub.url}), "org/model", "policy.baseModel", "model")
    asked = {request.rpartition("/")[2] for request in hub.requests if "/resolve/" in request}
    assert asked == {"config.json"}


def test_a_folder_of_the_workspace_comes_before_the_hub(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "org/model").mkdir(parents=True)
    ctx = context(tmp_path, {"hubEndpoint": hub.url})
    assert fetch.local_path(ctx, "org/model", "policy.baseModel", "model") == tmp_path / "org/model"
    assert hub.requests == []


# -- access ------------------------------------------------------------------------------------------------------------


def test_the_token_opens_what_is_private_and_goes_to_nobody_else(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.repository("org/private", FILES, kind="dataset", access="private")
    monkeypatch.setenv(SECRETS_ENV, str(secrets(tmp_path / "secrets", token=hub.token)))
    folder = get(hub, tmp_path / "w", "hf://org/private", hubTokenSecretRef=reference("token"))
    assert content(folder) == FILES  # one of them lies on another host, which refuses tokens
    assert f"Bearer {hub.token}" in hub.authorizations
    written = b"".join(p.read_bytes() for p in (tmp_path / "w").rglob("*") if p.is_file())
    assert hub.token.encode() not in written
    assert hub.token not in "".join(capfd.readouterr())


@pytest.mark.parametrize("damage", ["\nx", "\r\n", "é", "\x00", "\t"])
def test_a_token_that_is_no_line_is_refused_by_name(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    hub.repository("org/private", FILES, kind="dataset", access="private")
    folder = secrets(tmp_path / "secrets", token="x")
    monkeypatch.setenv(SECRETS_ENV, str(folder))
    (folder / "store" / "token").write_bytes(f"{hub.token}{damage}".encode())
    with pytest.raises(ConfigError, match=r"secret 'store', key 'token': .*one line of printable characters") as error:
        get(hub, tmp_path / "w", "hf://org/private", hubTokenSecretRef=reference("token"))
    assert hub.token not in str(error.value)
    assert not hub.requests


def test_a_token_that_lies_about_is_not_used(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    get(hub, tmp_path)
    assert hub.authorizations == {""}


@pytest.mark.parametrize(
    ("uri", "token", "message"),
    [
        ("hf://org/none", None, "the hub shows no dataset org/none; if it is not public, set {ref}"),
        ("hf://org/private", None, "the hub shows no dataset org/private; if it is not public, set {ref} to a Secret"),
        ("hf://org/none", "right", "the hub shows no dataset org/none; the token of Secret store (key token)"),
        ("hf://org/data", "wrong", "refuses access to org/data (401); the token of Secret store (key token) is not"),
        ("hf://org/gated", None, "org/gated is gated: ask for access on its page; if it is not public, set {ref}"),
        ("hf://org/gated", "right", "org/gated is gated: ask for access on its page; the token of Secret store"),
        ("hf://org/data@v9", None, "org/data has no revision 'v9'"),
        ("hf://org/data/none.json", None, "org/data has no 'none.json' at this revision; it has README.md, images"),
        ("hf://org/empty", None, "holds nothing that can be used; it has no files"),
    ],
)
def test_what_cannot_be_had_is_a_matter_of_configuration(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, token: str | None, message: str
) -> None:
    hub.repository("org/private", FILES, kind="dataset", access="private")
    hub.repository("org/gated", FILES, kind="dataset", access="gated")
    hub.repository("org/empty", {}, kind="dataset")
    reach = {}
    if token:
        value = hub.token if token == "right" else "another"
        monkeypatch.setenv(SECRETS_ENV, str(secrets(tmp_path / "secrets", token=value)))
        reach = {"hubTokenSecretRef": reference("token")}
    with pytest.raises(ConfigError) as error:
        get(hub, tmp_path / "w", uri, **reach)
    assert str(error.value).startswith(f"{WHAT}: {uri}: ")
    assert message.format(ref="data.fetch.hubTokenSecretRef") in str(error.value)
    assert not list((tmp_path / "w").rglob(pin_file.FETCHED))


def test_a_secret_that_is_not_there_is_named(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"secret 'store' has no key 'token'"):
        get(hub, tmp_path, hubTokenSecretRef=reference("token"))


def test_a_name_that_is_neither_folder_nor_repository(hub: HubServer, tmp_path: Path) -> None:
    ctx = context(tmp_path, {"hubEndpoint": hub.url})
    with pytest.raises(ConfigError, match=r"no model nobody/qwen \(nor is there such a folder in the workspace\)"):
        fetch.local_path(ctx, "nobody/qwen", "policy.baseModel", "model")
    with pytest.raises(ConfigError, match=r"'models/qwen' is not on the volume \(looked for .*/models/qwen\)"):
        fetch.local_path(ctx, "models/qwen", "policy.baseModel", "model")
    with pytest.raises(ConfigError, match=r"is a dataset; a model is named"):
        fetch.local_path(ctx, DATA, "policy.baseModel", "model")


# -- what may pass -----------------------------------------------------------------------------------------------------


def test_a_hub_that_fails_may_be_asked_again(hub: HubServer, tmp_path: Path) -> None:
    hub.fault = lambda method, path: HubFault(status=503) if path.startswith("/api/datasets") else None
    with pytest.raises(TemporaryError, match="the hub answers 503; try again later"):
        get(hub, tmp_path)
    hub.fault = lambda method, path: None
    assert content(get(hub, tmp_path)) == FILES


def test_no_hub_there_may_pass(hub: HubServer, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(TemporaryError, match="the hub cannot be reached"):
            get(hub, tmp_path, hubEndpoint=nobody)


def test_a_connection_that_breaks_in_the_middle_goes_on(hub: HubServer, tmp_path: Path) -> None:
    broken: list[str] = []

    def once(method: str, path: str) -> HubFault | None:
        if path.startswith("/cdn/") and not broken:
            broken.append(path)
            return HubFault(after=CHUNK + 1)
        return None

    files = {"large.bin": bytes(CHUNK) + os.urandom(1000)}
    hub.repository("org/data", files, kind="dataset")
    hub.fault = once
    assert content(get(hub, tmp_path)) == files
    assert hub.ranges == [f"bytes={CHUNK}-"]


@pytest.mark.parametrize("where", ["/cdn/", "/api/resolve-cache/"])
def test_damaged_bytes_are_not_taken(hub: HubServer, tmp_path: Path, where: str) -> None:
    hub.fault = lambda method, path: HubFault(spoil=True) if path.startswith(where) else None
    with pytest.raises(TemporaryError, match="arrived damaged"):
        get(hub, tmp_path)
    hub.fault = lambda method, path: None
    assert content(get(hub, tmp_path)) == FILES


def test_a_stop_in_the_middle_keeps_what_is_there(hub: HubServer, tmp_path: Path) -> None:
    hub.fault = lambda method, path: HubFault(after=10_000, hang=True) if path.startswith("/cdn/") else None
    stop = threading.Event()
    threading.Thread(target=lambda: (hub.hanging.wait(), stop.set())).start()
    with pytest.raises(Checkpointed):
        fetch.local_path(context(tmp_path, {"hubEndpoint": hub.url}, stop=stop), DATA, WHAT)
    assert not list(tmp_path.rglob(pin_file.FETCHED))
    hub.fault = lambda method, path: None
    assert content(get(hub, tmp_path)) == FILES


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_is_named_and_then_it_goes_on(hub: HubServer, tmp_path: Path) -> None:
    hub.repository("org/data", {**FILES, "images/large.png": os.urandom(1_500_000)}, kind="dataset")
    root = tmp_path / "volume"
    root.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", root], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(DiskFull, match=rf"{root}.*free some space"):
            get(hub, root)
        assert not list(root.rglob(pin_file.FETCHED))
        subprocess.run(["mount", "-o", "remount,size=8m", root], check=True)
        assert len(content(get(hub, root))) == len(FILES) + 1
    finally:
        subprocess.run(["umount", root], check=True)
