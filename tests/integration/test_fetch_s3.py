"""Fetching from S3: pyarrow's client against a real S3 server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from medgr2_api.stage_contract import SECRETS_ENV
from medgr2_jobs import fetch
from medgr2_jobs.errors import Checkpointed, ConfigError, TemporaryError
from medgr2_jobs.fetch import pin_file, s3
from medgr2_jobs.fetch.request import FetchRequest
from tests.support.fetch_fixtures import context, reference, secrets
from tests.support.s3_server import ACCESS, SECRET, S3Server, s3_server
from tests.support.slow_proxy import slow_proxy

WHAT = "data.sources[seed].uri"
OBJECTS = {"questions.json": b"[]", "images/a.png": os.urandom(70_000), "images/deep/b c.png": b"b"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        server.put("lab-data", {f"seed/{key}": data for key, data in OBJECTS.items()})
        server.put("empty-bucket", {})
        yield server


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = secrets(tmp_path / "secrets", id=ACCESS, key=SECRET, wrong="not-the-key-of-this-store")
    monkeypatch.setenv(SECRETS_ENV, str(folder))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):  # are not asked
        monkeypatch.setenv(name, "another")


def reach(url: str, **changes: Any) -> dict[str, Any]:
    """`data.fetch` with the right keys."""
    keys = {"accessKeyIDSecretRef": reference("id"), "secretAccessKeySecretRef": reference("key")}
    given = {"endpointURL": url, **keys, **changes}
    return {"s3": {name: value for name, value in given.items() if value is not None}}


def test_a_model_of_an_unknown_family_is_refused_before_its_weights_are_fetched(
    store: S3Server, tmp_path: Path
) -> None:
    weights = b"w" * 1000
    store.put("models", {"good/config.json": b'{"model_type": "gemma3"}', "good/model.safetensors": weights,
                         "bad/config.json": b'{"model_type": "blip-2"}', "bad/model.safetensors": weights})  # fmt: skip
    ctx = context(tmp_path, reach(store.url))
    folder = fetch.local_path(ctx, "s3://models/good", "policy.baseModel", "model")
    assert content(folder)["model.safetensors"] == weights
    with pytest.raises(ConfigError, match="model type 'blip-2' is not supported"):
        fetch.local_path(ctx, "s3://models/bad", "policy.baseModel", "model")
    assert len(list((tmp_path / "inputs").rglob("model.safetensors"))) == 1


def get(url: str, root: Path, uri: str, **changes: Any) -> Path:
    return fetch.local_path(context(root, reach(url, **changes)), uri, WHAT)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("uri", ["s3://lab-data/seed", "s3://lab-data/seed/"])
def test_a_prefix_is_a_folder(store: S3Server, tmp_path: Path, uri: str) -> None:
    folder = get(store.url, tmp_path, uri)
    assert content(folder) == OBJECTS
    fetched = pin_file.load(folder.parent, uri, "dataset")
    assert fetched is not None
    etags = {file.path: file.etag for file in fetched.files}
    assert set(etags) == set(OBJECTS)
    assert all(etags.values())
    assert "etag" not in str(fetched.pin())


def test_a_bucket_is_a_folder_and_an_object_a_file(store: S3Server, tmp_path: Path) -> None:
    whole = get(store.url, tmp_path, "s3://lab-data")
    assert content(whole) == {f"seed/{name}": data for name, data in OBJECTS.items()}
    found = get(store.url, tmp_path, "s3://lab-data/seed/images/deep/b c.png")
    assert (found.name, found.read_bytes()) == ("b c.png", b"b")


def test_what_was_fetched_needs_no_store(store: S3Server, tmp_path: Path) -> None:
    folder = get(store.url, tmp_path, "s3://lab-data/seed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{probe.getsockname()[1]}"
        assert get(nobody, tmp_path, "s3://lab-data/seed") == folder
        with pytest.raises(TemporaryError, match="the store cannot be reached"):
            get(nobody, tmp_path, "s3://lab-data/seed/images")


@pytest.mark.parametrize(
    ("uri", "changes", "message"),
    [
        ("s3://lab-data/none", {}, "there is no such bucket, or no such key in it"),
        ("s3://no-such-bucket/x", {}, "there is no such bucket, or no such key in it"),
        ("s3://empty-bucket", {}, "holds nothing that can be used (0 objects are there)"),
        (
            "s3://lab-data/seed",
            {"secretAccessKeySecretRef": reference("wrong")},
            "refused: the keys of Secret store (key id) and Secret store (key wrong) do not open it; "
            "set data.fetch.s3.accessKeyIDSecretRef",
        ),
        (
            "s3://lab-data/seed",
            {"accessKeyIDSecretRef": reference("wrong")},
            "do not open it; set data.fetch.s3.access",
        ),
        (
            "s3://lab-data/seed",
            {"accessKeyIDSecretRef": None, "secretAccessKeySecretRef": None},
            "refused: it was asked anonymously; set data.fetch.s3.accessKeyIDSecretRef",
        ),
    ],
)
def test_what_cannot_be_had_is_a_matter_of_configuration(
    store: S3Server, tmp_path: Path, uri: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        get(store.url, tmp_path / "w", uri, **changes)
    assert str(error.value).startswith(f"{WHAT}: {uri}: ")
    assert message in str(error.value)
    assert SECRET not in str(error.value)
    assert not list((tmp_path / "w").rglob(pin_file.FETCHED))


class _Busy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Quiet."""


def test_a_store_that_fails_may_be_asked_again(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), _Busy) as busy:
        threading.Thread(target=busy.serve_forever, daemon=True).start()
        with pytest.raises(TemporaryError, match="the store cannot be reached, or fails"):
            get(f"http://127.0.0.1:{busy.server_port}", tmp_path, "s3://lab-data/seed")
        busy.shutdown()


def test_killed_in_the_middle_it_goes_on(store: S3Server, tmp_path: Path) -> None:
    """Whole objects are not asked for again, and of a broken one only what is not surely on the disk."""
    large, chunk = os.urandom(4 * s3._CHUNK), s3._CHUNK
    store.put("large-data", {"a": b"a" * 1000, "large": large})
    with slow_proxy(store.port) as proxy:
        proxy.reset(limit=3 * chunk + 100_000)
        code = (
            "import sys; from pathlib import Path; sys.path.insert(0, '.')\n"
            "from tests.integration.test_fetch_s3 import get\n"
            f"get({proxy.url!r}, Path({str(tmp_path)!r}), 's3://large-data')"
        )
        process = subprocess.Popen([sys.executable, "-c", code])
        assert proxy.stuck.wait(60)
        process.kill()
        process.wait()
        assert not list(tmp_path.rglob(pin_file.FETCHED))
        proxy.reset()
        folder = get(proxy.url, tmp_path, "s3://large-data")
        assert content(folder) == {"a": b"a" * 1000, "large": large}
        assert proxy.answered < 3 * chunk
    assert not (pin_file.scratch_of(folder.parent) / "partial").exists()


def test_a_stop_in_the_middle(store: S3Server, tmp_path: Path) -> None:
    store.put("stop-data", {"large": os.urandom(2 * s3._CHUNK)})
    with slow_proxy(store.port) as proxy:
        proxy.reset(limit=s3._CHUNK + 100_000)
        stop = threading.Event()
        threading.Thread(target=lambda: (proxy.stuck.wait(), stop.set())).start()
        with pytest.raises(Checkpointed):
            fetch.local_path(context(tmp_path, reach(proxy.url), stop=stop), "s3://stop-data", WHAT)
    assert not list(tmp_path.rglob(pin_file.FETCHED))


def test_an_object_that_was_replaced_meanwhile_is_fetched_anew(store: S3Server, tmp_path: Path) -> None:
    store.put("moving-data", {"a": b"a" * 100, "b": b"b" * 100, "gone": b"g"})
    order = FetchRequest(
        parent=os.getpid(), root=str(tmp_path), uri="s3://moving-data", kind="dataset", what=WHAT,
        s3_endpoint=store.url, s3_access_key=ACCESS, s3_secret_key=SECRET,
    )  # fmt: skip
    before = s3.fetch(order, tmp_path / "partial", lambda done, total: None).etags
    (tmp_path / "partial/files/never-written-down").write_bytes(b"x")
    kept = tmp_path / "partial/files/b"
    inode = kept.stat().st_ino
    store.put("moving-data", {"a": b"A" * 100})
    store.client().delete_file("moving-data/gone")
    found = s3.fetch(order, tmp_path / "partial", lambda done, total: None)
    assert content(tmp_path / "partial/files") == {"a": b"A" * 100, "b": b"b" * 100}
    assert set(found.etags) == {"a", "b"}
    assert (found.etags["a"] == before["a"], found.etags["b"] == before["b"]) == (False, True)
    assert kept.stat().st_ino == inode
