"""Reading and writing artifacts: nothing leads out of the workspace, nothing unlisted is read."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from medgr2_api import paths
from medgr2_api.stage_contract import SECRETS_ENV, ArtifactRef, CycleRef, Shard, StageRequest
from medgr2_jobs.errors import ConfigError, CorruptArtifact, DiskFull, Fenced
from medgr2_jobs.runner.context import StageContext
from medgr2_jobs.store import atomic, fencing, manifest
from medgr2_jobs.store.artifact import ArtifactReader, ArtifactWriter
from medgr2_jobs.store.rows.candidates import Score
from medgr2_jobs.store.safe_path import inside


def request(**fields: Any) -> StageRequest:
    fields = {"cycle": CycleRef(name="c", uid="u1"), "iteration": 1, "input_hash": "abc", "parameters": {}, **fields}
    return StageRequest(stage="sft", **fields)


def publish(root: Path, asked: StageRequest, files: dict[str, bytes]) -> ArtifactRef:
    writer = ArtifactWriter(root, asked)
    writer.open()
    for name, data in files.items():
        writer.path(name).write_bytes(data)
    made = manifest.Manifest(
        stage=asked.stage,
        input_hash=asked.input_hash,
        code_version=1,
        cycle="c",
        iteration=1,
        attempt=asked.attempt,
        parts=writer.parts(),
        inputs={},
        parameters={"rate": 1e-4, "version": "2.0"},
        packages={"pyarrow": "26.0"},  # text that looks like a number
    )
    standing = manifest.commit(writer.base, made, writer.work)
    writer.clean(standing)
    path = str(paths.artifact(asked.stage, asked.input_hash))
    return ArtifactRef(stage=asked.stage, iteration=1, path=path, output_digest=standing.output_digest)


def test_round_trip(tmp_path: Path) -> None:
    ref = publish(tmp_path, request(), {"model/a.bin": b"a", "model/sub/b.bin": b"b", "notes.txt": b"n"})
    reader = ArtifactReader(tmp_path, ref)
    assert reader.file("notes.txt").read_bytes() == b"n"
    assert (reader.folder_of("model") / "sub" / "b.bin").read_bytes() == b"b"
    assert reader.manifest.packages == {"pyarrow": "26.0"}
    assert reader.has("notes.txt")
    assert not reader.has("other")
    for wrong in (lambda: reader.file("x"), lambda: reader.folder_of("mod"), lambda: reader.rows(Score)):
        with pytest.raises(CorruptArtifact, match="has no"):
            wrong()


def test_other_digest_is_refused(tmp_path: Path) -> None:
    ref = publish(tmp_path, request(), {"a": b"a"})
    with pytest.raises(CorruptArtifact, match="not the expected"):
        ArtifactReader(tmp_path, ref.model_copy(update={"output_digest": "0" * 64}))
    with pytest.raises(CorruptArtifact, match="nothing is published"):
        ArtifactReader(tmp_path, ref.model_copy(update={"path": "artifacts/sft/none"}))


@pytest.mark.parametrize("path", ["../outside", "/etc", "artifacts/../../outside", "~root", "a\\b", "a\0b"])
def test_paths_stay_inside(tmp_path: Path, path: str) -> None:
    ref = ArtifactRef(stage="sft", iteration=1, path=path, output_digest="")
    with pytest.raises(ConfigError):
        ArtifactReader(tmp_path, ref)


def test_symlinks_stay_inside(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    root.mkdir()
    ref = publish(other, request(), {"a": b"a"})
    (root / "artifacts").symlink_to(other / "artifacts")
    with pytest.raises(ConfigError, match="leads out"):
        ArtifactReader(root, ref)
    (root / "inner").mkdir()
    (root / "link").symlink_to(root / "inner")
    assert inside(root, "link/x", "it") == root / "link/x"
    (tmp_path / "alias").symlink_to(root)  # the workspace itself may be a link
    assert inside(tmp_path / "alias", "inner", "it") == tmp_path / "alias/inner"


def test_manifest_cannot_name_files_outside(tmp_path: Path) -> None:
    ref = publish(tmp_path, request(), {"a": b"a"})
    folder = tmp_path / ref.path
    found = manifest.load(folder)
    assert found is not None
    secret = tmp_path / "secret"
    secret.write_bytes(b"a")
    for path in ("../../../secret", str(secret)):
        with pytest.raises(CorruptArtifact):
            manifest.verify_part(folder, found.parts[0].model_copy(update={"path": path}))


def test_writer_refuses_names_outside(tmp_path: Path) -> None:
    writer = ArtifactWriter(tmp_path, request())
    with pytest.raises(ValueError, match="must not contain"):
        writer.path("../x")


def test_what_changed_after_publishing_is_not_handed_out(tmp_path: Path) -> None:
    ref = publish(tmp_path, request(), {"model/a.bin": b"a", "notes.txt": b"n", "scores.parquet": b"p"})
    for path in (tmp_path / ref.path).glob("a1-*/**/*.*"):
        path.write_bytes(b"?")  # same size
    reader = ArtifactReader(tmp_path, ref)
    for name, read in (
        ("notes.txt", lambda: reader.file("notes.txt")),
        ("a.bin", lambda: reader.folder_of("model")),
        ("scores.parquet", lambda: reader.rows(Score)),
    ):
        with pytest.raises(CorruptArtifact, match=rf"{name}: sha256 differs"):
            read()


def test_manifest_of_another_version_is_told_apart_from_a_damaged_one(tmp_path: Path) -> None:
    folder = tmp_path / publish(tmp_path, request(), {"a": b"a"}).path
    path = folder / paths.MANIFEST
    path.write_text(path.read_text().replace('"schemaVersion": 1', '"schemaVersion": 2, "news": 1'))
    with pytest.raises(CorruptArtifact, match="schema version 2, this version reads 1"):
        manifest.load(folder)


@pytest.mark.parametrize("text", ['{"parts": "\\udc9a"}', "[" * 5000, '"\\ud800"'])
def test_what_no_manifest_can_hold_is_told_as_damage(tmp_path: Path, text: str) -> None:
    folder = tmp_path / publish(tmp_path, request(), {"a": b"a"}).path
    (folder / paths.MANIFEST).write_text(text)
    with pytest.raises(CorruptArtifact, match="not a manifest"):
        manifest.load(folder)


def test_unlisted_file_in_a_model_folder(tmp_path: Path) -> None:
    reader = ArtifactReader(tmp_path, publish(tmp_path, request(), {"model/a.bin": b"a"}))
    stranger = reader.folder_of("model") / "adapter_config.json"
    stranger.write_text("{}")
    with pytest.raises(CorruptArtifact, match=r"adapter_config\.json.*not in"):
        reader.folder_of("model")


def test_shards_are_in_numeric_order(tmp_path: Path) -> None:
    order = [0, 2, 100, 999, 1000]
    digests = []
    for index in order:
        asked = request(shard=Shard(index=index, count=2000))
        publish(tmp_path, asked, {f"part-{index}": b"x"})
        found = manifest.load(tmp_path / paths.artifact("sft", "abc") / paths.shard(index))
        assert found is not None
        digests.append(found.output_digest)
    path = str(paths.artifact("sft", "abc"))
    digest = manifest.combined_digest(digests)
    ref = ArtifactRef(stage="sft", iteration=1, path=path, output_digest=digest)
    assert [folder.name for folder, _ in ArtifactReader(tmp_path, ref).shards] == [paths.shard(n) for n in order]


def test_take_copies_links_by_content(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "1").write_bytes(b"weights")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "w.bin").symlink_to(tmp_path / "blobs" / "1")
    writer = ArtifactWriter(tmp_path, request())
    writer.open()
    writer.take("model", tmp_path / "model")
    writer.take("one.bin", tmp_path / "blobs" / "1")
    assert sorted(part.name for part in writer.parts()) == ["model/w.bin", "one.bin"]
    assert not (writer.folder / "model" / "w.bin").is_symlink()


def test_first_commit_stands(tmp_path: Path) -> None:
    """Many at once: exactly one manifest, complete at every moment."""
    writers = [ArtifactWriter(tmp_path, request(cycle=CycleRef(name="c", uid=f"u{n}"))) for n in range(8)]
    standing = []

    def commit(number: int) -> None:
        writer = writers[number]
        writer.open()
        writer.path("x").write_bytes(bytes([number]))
        made = manifest.Manifest(
            stage="sft",
            input_hash="abc",
            code_version=1,
            cycle="c",
            iteration=1,
            attempt=1,
            parts=writer.parts(),
            inputs={},
            parameters={},
        )
        standing.append(manifest.commit(writer.base, made, writer.work).output_digest)

    threads = [threading.Thread(target=commit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(standing) == 8
    assert len(set(standing)) == 1
    assert not list(tmp_path.rglob("*.tmp"))


def test_commit_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    assert atomic.create_text(tmp_path / "m", "first", tmp_path)
    assert not atomic.create_text(tmp_path / "m", "second", tmp_path)
    assert (tmp_path / "m").read_text() == "first"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, number: int) -> None:
    path = tmp_path / "m"
    atomic.write_text(path, "old")

    def write() -> None:
        with atomic.atomic_file(path) as stream:
            stream.write(b"half")
            raise OSError(number, os.strerror(number))

    with pytest.raises(DiskFull, match=r"m: .*free some space"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_clean_takes_only_its_own(tmp_path: Path) -> None:
    base = tmp_path / paths.artifact("sft", "abc")
    for attempt, uid in ((1, "u1"), (2, "u1"), (9, "u1"), (1, "u2")):
        writer = ArtifactWriter(tmp_path, request(attempt=attempt, cycle=CycleRef(name="c", uid=uid)))
        writer.open()
        writer.path("half").write_bytes(b"half")
    publish(tmp_path, request(attempt=3), {"a": b"a"})
    left = {path.name for path in base.iterdir() if path.name.startswith("a")}
    assert {name.partition("-")[0] for name in left} == {"a3", "a9", "a1"}  # its own newer one, and the stranger's
    assert [path.name for path in (base / "work").iterdir()] == ["u2"]


def test_fence(tmp_path: Path) -> None:
    fencing.raise_fence(tmp_path, request(attempt=1))
    fencing.raise_fence(tmp_path, request(attempt=3))
    fencing.check(tmp_path, request(attempt=3))
    for attempt in (1, 2):
        with pytest.raises(Fenced, match="attempt 3"):
            fencing.check(tmp_path, request(attempt=attempt))
        with pytest.raises(Fenced):
            fencing.raise_fence(tmp_path, request(attempt=attempt))
    fencing.check(tmp_path, request(attempt=1, token="again"))
    fencing.check(tmp_path, request(attempt=1, cycle=CycleRef(name="c", uid="made-anew")))
    fencing.check(tmp_path, request(attempt=1, shard=Shard(index=1, count=2)))
    fencing.check(tmp_path, request(attempt=1, iteration=2))


def test_a_fence_that_was_cut_off_is_no_fence(tmp_path: Path) -> None:
    fencing.raise_fence(tmp_path, request(attempt=3))
    (path,) = (tmp_path / "cycles" / "c" / "fences").iterdir()
    path.write_text(path.read_text()[:10])
    fencing.raise_fence(tmp_path, request(attempt=2))
    with pytest.raises(Fenced, match="attempt 2"):
        fencing.check(tmp_path, request(attempt=1))


def test_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRETS_ENV, str(tmp_path / "secrets"))
    (tmp_path / "secrets" / "openai").mkdir(parents=True)
    (tmp_path / "secrets" / "openai" / "key").write_text("s3cret\n")
    (tmp_path / "secrets" / "openai" / "empty").write_text("\n")
    (tmp_path / "secrets" / "openai" / "binary").write_bytes(b"\xff")
    (tmp_path / "outside").write_text("no")
    context: StageContext[Any] = StageContext(request(), None, tmp_path)  # type: ignore[type-var]
    assert context.secret("openai", "key") == "s3cret"
    for name, key in (("openai", "none"), ("openai", "empty"), ("openai", "binary"), ("..", "outside"), ("", "key")):
        with pytest.raises(ConfigError, match="secret"):
            context.secret(name, key)
