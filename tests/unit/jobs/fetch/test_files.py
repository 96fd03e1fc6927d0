"""Copying from elsewhere on this computer: whole, once, and nothing that is no data."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from tests.support.fetch_fixtures import context

from medgr2_api.stage_contract import SECRETS_ENV
from medgr2_jobs import fetch
from medgr2_jobs.errors import Checkpointed, ConfigError, CorruptArtifact, TemporaryError
from medgr2_jobs.fetch import files, pin_file, worker_client
from medgr2_jobs.fetch.request import FetchRequest

WHAT = "data.sources[seed].uri"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder outside of the workspace."""
    folder = tmp_path / "elsewhere/data with space"
    (folder / "images").mkdir(parents=True)
    (folder / "questions.json").write_text("[]")
    (folder / "images/x.png").write_bytes(b"x" * 1000)
    (folder / "images/link.png").symlink_to("x.png")
    return folder


def uri(path: Path) -> str:
    return f"file://{path}".replace(" ", "%20")


def copy(tmp_path: Path, source: str, kind: pin_file.Kind = "dataset") -> dict[str, bytes]:
    """What `files.fetch` makes of a URI, in this process."""
    root, partial = tmp_path / "workspace", tmp_path / "partial"
    root.mkdir(exist_ok=True)
    order = FetchRequest(parent=os.getpid(), root=str(root), uri=source, kind=kind, what=WHAT)
    files.fetch(order, partial, lambda done, total: None)
    top = partial / pin_file.FILES
    return {path.relative_to(top).as_posix(): path.read_bytes() for path in top.rglob("*") if path.is_file()}


def test_a_folder_is_copied_once_and_stays_what_it_was(tmp_path: Path, data: Path) -> None:
    root = tmp_path / "workspace"
    path = fetch.local_path(context(root), uri(data), WHAT)
    assert path.is_relative_to(root / "inputs")
    assert {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()} == {
        "questions.json",
        "images/x.png",
        "images/link.png",
    }
    assert not (path / "images/link.png").is_symlink()
    (data / "questions.json").write_text("[1]")
    assert fetch.local_path(context(root), uri(data), WHAT) == path
    assert (path / "questions.json").read_text() == "[]"


def test_a_file_is_copied_alone(tmp_path: Path, data: Path) -> None:
    path = fetch.local_path(context(tmp_path / "workspace"), uri(data / "questions.json"), WHAT)
    assert path.name == "questions.json"
    assert path.read_text() == "[]"
    assert list(path.parent.iterdir()) == [path]


def test_a_path_on_the_volume_is_used_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert fetch.local_path(context(tmp_path), "data", WHAT) == tmp_path / "data"
    with pytest.raises(ConfigError, match=r"uri: 'seed' is not on the volume .*hf://org/name@revision"):
        fetch.local_path(context(tmp_path), "seed", WHAT)
    with pytest.raises(ConfigError, match=r"must not contain '\.\.'"):
        fetch.local_path(context(tmp_path), "../data", WHAT)
    assert not (tmp_path / "inputs").exists()


def test_a_changed_byte_is_found_in_the_next_run(tmp_path: Path, data: Path) -> None:
    path = fetch.local_path(context(tmp_path / "workspace"), uri(data), WHAT)
    (path / "questions.json").write_text("{}")
    with pytest.raises(CorruptArtifact, match=r"questions.json: sha256 differs .*; remove .*inputs/"):
        fetch.local_path(context(tmp_path / "workspace"), uri(data), WHAT)


def test_inputs_that_are_a_link_out_of_the_workspace_are_refused(tmp_path: Path, data: Path) -> None:
    root = tmp_path / "workspace"
    root.mkdir()
    (tmp_path / "other").mkdir()
    (root / "inputs").symlink_to(tmp_path / "other")
    with pytest.raises(ConfigError, match="leads out of the workspace"):
        fetch.local_path(context(root), uri(data), WHAT)
    assert list((tmp_path / "other").iterdir()) == []


@pytest.mark.parametrize("place", ["/proc/self", "/sys", "/dev/shm", "/run", "/var/run/secrets", "/", "/var"])
def test_nothing_is_copied_from_the_system(tmp_path: Path, place: str) -> None:
    with pytest.raises(ConfigError, match=r"nothing is copied from /"):
        copy(tmp_path, f"file://{place}")


def test_secrets_and_the_workspace_are_not_copied(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRETS_ENV, str(data / "images"))
    for place in (data / "images", data / "images/x.png", data):
        with pytest.raises(ConfigError, match="nothing is copied from"):
            copy(tmp_path, uri(place))
    monkeypatch.setenv(SECRETS_ENV, "")
    (tmp_path / "workspace/seed").mkdir(parents=True)
    with pytest.raises(ConfigError, match="is in the workspace: write 'seed'"):
        copy(tmp_path, uri(tmp_path / "workspace/seed"))
    with pytest.raises(ConfigError, match="holds the workspace itself"):
        copy(tmp_path, uri(tmp_path))


def test_a_link_out_of_what_is_copied_is_refused(tmp_path: Path, data: Path) -> None:
    (tmp_path / "secret").write_text("s")
    (data / "leak").symlink_to(tmp_path / "secret")
    with pytest.raises(ConfigError, match=r"leak is a link that leads out of it"):
        copy(tmp_path, uri(data))
    (data / "leak").unlink()
    (data / "folder").symlink_to("images")
    with pytest.raises(ConfigError, match=r"folder is a link to a folder"):
        copy(tmp_path, uri(data))
    (data / "folder").unlink()
    os.mkfifo(data / "pipe")
    with pytest.raises(ConfigError, match=r"pipe is no regular file"):
        copy(tmp_path, uri(data))


def test_of_a_model_only_what_may_be_loaded(tmp_path: Path, data: Path) -> None:
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", "modeling.py"):
        (data / name).write_bytes(b"{}")
    assert set(copy(tmp_path, uri(data), "model")) == {"config.json", "model.safetensors", "questions.json"}
    with pytest.raises(ConfigError, match="nothing that can be used"):
        copy(tmp_path, uri(data / "images"), "model")


def test_an_interrupted_copy_goes_on_and_keeps_nothing_that_is_gone(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy(tmp_path, uri(data))
    kept = tmp_path / "partial/files/images/x.png"
    before = kept.stat().st_ino
    (data / "images/link.png").unlink()
    (data / "questions.json").write_text("[1, 2]")
    (tmp_path / "partial/files/.half.tmp").write_bytes(b"h")
    assert copy(tmp_path, uri(data)) == {"questions.json": b"[1, 2]", "images/x.png": b"x" * 1000}
    assert kept.stat().st_ino == before  # not copied again


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"uri: file:///none/such: there is no such file or folder on this computer"):
        fetch.local_path(context(tmp_path / "workspace"), "file:///none/such", WHAT)


def test_a_stop_is_heeded(tmp_path: Path, data: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Checkpointed):
        fetch.local_path(context(tmp_path / "workspace", stop=stop), uri(data), WHAT)
    assert not list((tmp_path / "workspace").rglob(pin_file.FETCHED))


@pytest.mark.parametrize("script", ["kill -9 $$", "read order; exit 3", 'read order; echo \'{"done": 1, "total": 2}\''])
def test_a_fetching_process_that_ends_without_a_word_may_be_tried_again(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(worker_client, "_COMMAND", ("sh", "-c", script))
    with pytest.raises(TemporaryError, match="ended without a result"):
        fetch.local_path(context(tmp_path / "workspace"), uri(data), WHAT)


def test_pins_name_what_was_fetched_and_not_from_which_folder_of_ours(tmp_path: Path, data: Path) -> None:
    sources = [
        {"name": "a", "format": "OmniMedVQA", "uri": uri(data / "questions.json"), "images": uri(data / "images")},
        {"name": "b", "format": "OmniMedVQA", "uri": "b.json", "images": uri(data / "images")},
    ]
    found = []
    for root in (tmp_path / "one", tmp_path / "two"):
        ctx = context(root, data={"sources": sources})
        assert fetch.pins(ctx) == []
        for name, what, kind in fetch.referenced_uris(ctx.parameters):
            if fetch.remote_uri(root, name, kind):
                fetch.local_path(ctx, name, what, kind)
        found.append(fetch.pins(ctx))
    assert found[0] == found[1]
    assert [pin["uri"] for pin in found[0]] == sorted([uri(data / "images"), uri(data / "questions.json")])
    assert str(tmp_path / "one") not in str(found[0])
