"""What was fetched is known again, or said not to be what it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from medgr2_api.uris import hub_parts
from medgr2_jobs.errors import CorruptArtifact
from medgr2_jobs.fetch import pin_file
from medgr2_jobs.fetch.request import relative_to

URI = "s3://bucket/seed"


def fetched(root: Path, uri: str = URI, **files: bytes) -> tuple[Path, pin_file.PinFile]:
    """A committed folder with these files (`__` in a name stands for a folder)."""
    folder = pin_file.folder_of(root, uri, "dataset")
    partial = pin_file.scratch_of(folder) / "partial"
    for name, data in (files or {"a": b"1", "b__c": b"22"}).items():
        path = partial / pin_file.FILES / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    described = pin_file.describe(partial, {"a": "etag"}, lambda done: None)
    found = pin_file.PinFile(uri=uri, kind="dataset", files=described)
    pin_file.commit(partial, folder, found)
    return folder, found


def verify(folder: Path) -> None:
    found = pin_file.load(folder, URI, "dataset")
    assert found is not None
    pin_file.verify(folder, found, lambda done: None)


def test_what_is_committed_is_found_and_whole(tmp_path: Path) -> None:
    folder, found = fetched(tmp_path)
    assert pin_file.load(folder, URI, "dataset") == found
    assert [(file.path, file.bytes, file.etag) for file in found.files] == [("a", 1, "etag"), ("b/c", 2, "")]
    verify(folder)
    assert not (pin_file.scratch_of(folder) / "partial").exists()


def test_a_copy_that_broke_off_before_its_fetched_json_is_nothing(tmp_path: Path) -> None:
    folder = pin_file.folder_of(tmp_path, URI, "dataset")
    (folder / pin_file.FILES).mkdir(parents=True)
    (folder / pin_file.FILES / "half").write_bytes(b"x")
    assert pin_file.load(folder, URI, "dataset") is None
    fetched(tmp_path)
    verify(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "a").unlink(), "files/a: missing"),
        (lambda f: (f / "a").write_bytes(b"2"), "files/a: sha256 differs"),
        (lambda f: (f / "b/c").write_bytes(b"2"), "files/b/c: 1 bytes, fetched.json says 2"),
        (lambda f: (f / "b/new.json").write_bytes(b"[]"), "files/b/new.json: fetched.json does not list it"),
        (lambda f: (f / "dangling").symlink_to("nowhere"), "files/dangling: fetched.json does not list it"),
    ],
)
def test_what_differs_is_named_with_what_to_do(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    folder, _ = fetched(tmp_path)
    spoil(folder / pin_file.FILES)
    with pytest.raises(CorruptArtifact) as error:
        verify(folder)
    assert message in str(error.value)
    assert f"remove {folder} and run again" in str(error.value)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    folder, _ = fetched(tmp_path)
    (tmp_path / "elsewhere").write_bytes(b"1")
    (folder / pin_file.FILES / "a").unlink()
    (folder / pin_file.FILES / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptArtifact, match="leads out of its folder"):
        verify(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d | {"schemaVersion": 9}, "schema version 9, this version reads 1"),
        (lambda d: d | {"uri": "s3://bucket/other"}, "is of dataset s3://bucket/other, not of dataset"),
        (lambda d: d | {"files": [{**d["files"][0], "path": "../../x"}]}, "must not contain '..'"),
        (lambda d: d | {"files": 3}, "remove"),
        (lambda d: [d], "schema version None"),
    ],
)
def test_a_fetched_json_that_is_not_ours(tmp_path: Path, change: Callable[[dict], object], message: str) -> None:
    folder, _ = fetched(tmp_path)
    path = folder / pin_file.FETCHED
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(CorruptArtifact) as error:
        verify(folder)
    assert message in str(error.value)
    path.write_text("{")
    with pytest.raises(CorruptArtifact, match="not JSON"):
        verify(folder)


def test_keys_are_readable_and_differ() -> None:
    uris = [URI, "s3://bucket/seed/", "s3://bucket-seed/x", "hf://bucket/seed", "hf://bucket/seed@v1"]
    keys = [pin_file.key(uri, kind) for uri in uris for kind in ("dataset", "model")]
    assert len(set(keys)) == len(keys)
    assert pin_file.key("hf://org/name@v1.0/a b", "model").startswith("org-name-v1.0-a-b-")
    assert not {"/", "@", " "} & set("".join(keys))


def test_a_pin_is_about_content_only(tmp_path: Path) -> None:
    _, here = fetched(tmp_path / "here")
    there = here.model_copy(update={"files": [file.model_copy(update={"etag": "other"}) for file in here.files]})
    assert here.pin() == there.pin()
    _, other = fetched(tmp_path / "other", a=b"2", b__c=b"22")
    assert other.pin()["sha256"] != here.pin()["sha256"]
    assert str(tmp_path) not in json.dumps(here.pin())
    assert (here.pin()["bytes"], here.pin()["uri"]) == (3, URI)


@pytest.mark.parametrize(
    ("name", "asked", "found"),
    [
        ("a/b.json", "", "a/b.json"),
        ("a/b.json", "a", "b.json"),
        ("a/b.json", "a/b.json", "b.json"),
        ("ab/c", "a", None),
        ("a", "a/b", None),
    ],
)
def test_what_lies_below(name: str, asked: str, found: str | None) -> None:
    assert relative_to(name, asked) == found


@pytest.mark.parametrize("name", ["pytorch_model.bin", "w.pt", "modeling.py", ".git/config.json", "a/.x/b.json"])
def test_of_a_model_nothing_is_taken_that_could_run(name: str) -> None:
    assert not pin_file.is_fetched(name, "model")
    assert pin_file.is_fetched(name, "dataset")


def test_the_parts_of_a_hub_uri() -> None:
    assert hub_parts("hf://datasets/org/name@refs%2Fpr%2F1/a/b") == ("org/name", "refs/pr/1", "a/b")
    assert hub_parts("hf://org/name") == ("org/name", "", "")
