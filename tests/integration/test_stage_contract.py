"""The contract that every stage keeps, in processes of their own: exit codes, results, publishing, fences, crashes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from medgr2_api import paths
from medgr2_api.stage_contract import CycleRef, Shard, StageResult
from medgr2_jobs.store import manifest
from medgr2_jobs.store.artifact import ArtifactReader
from medgr2_jobs.store.rows.candidates import Score
from tests.support.contract_fixtures import PARAMETERS, artifact, finish, names, ref, request, run, start, until


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StageResult]:
    """An undisturbed run, to copy."""
    folder = tmp_path_factory.mktemp("published") / "workspace"
    folder.mkdir()
    code, result, output = run(folder, request(), "parts")
    assert code == 0, output
    return folder, result


# -- success -----------------------------------------------------------------------------------------------------------


def test_success_publishes_and_says_so(published: tuple[Path, StageResult]) -> None:
    root, result = published
    assert (result.exit_code, result.reason, result.reused) == (0, "Succeeded", False)
    assert result.metrics == {"rows": 100}  # what is not finite is left out
    assert result.usage["gpuSeconds"] == 1.5
    assert result.usage["wallSeconds"] > 0
    assert result.usage["cpuSeconds"] > 0
    reader = ArtifactReader(root, ref(result))
    assert len(reader.rows(Score)) == 100
    assert sorted(path.name for path in reader.folder_of("model").iterdir()) == [f"part-{n}.bin" for n in range(8)]
    assert not reader.manifest.part("log.txt").digested  # type: ignore[union-attr]
    assert len(names(artifact(root))) == 2  # manifest and parts: no checkpoints, no temporary files
    link = root / paths.iteration_link("test", 1, "score")
    assert link.resolve() == artifact(root).resolve()
    progress = root / paths.progress("test", paths.attempt_name(1, "score", "", 1))
    assert json.loads(progress.read_text())["phase"] == "write"


def test_digest_does_not_depend_on_logs_attempt_or_cycle(root: Path, published: tuple[Path, StageResult]) -> None:
    other = request(attempt=3, cycle=CycleRef(name="other", uid="uid-2"))
    assert run(root, other, "parts")[1].output_digest == published[1].output_digest


def test_valid_manifest_is_reused_at_once(root: Path, published: tuple[Path, StageResult]) -> None:
    shutil.copytree(published[0], root, dirs_exist_ok=True, symlinks=True)
    code, result, _ = run(root, request(attempt=2, cycle=CycleRef(name="next", uid="uid-2")), "bad")
    assert (code, result.reason, result.reused) == (0, "Reused", True)
    assert result.output_digest == published[1].output_digest
    assert result.usage == {}
    assert (root / paths.iteration_link("next", 1, "score")).is_dir()


def test_collect(root: Path, published: tuple[Path, StageResult]) -> None:
    code, result, _ = run(root, request(collect=True), "parts")
    assert (code, result.exit_code) == (75, 75)
    assert not artifact(root).exists()
    shutil.copytree(published[0], root, dirs_exist_ok=True, symlinks=True)
    code, result, _ = run(root, request(collect=True), "bad")
    assert (code, result.reason, result.reused) == (0, "Succeeded", False)
    assert result.usage["gpuSeconds"] == 1.5  # the pod that spent it could not say so


def test_shards_publish_apart(root: Path) -> None:
    results = [run(root, request(shard=Shard(index=index, count=2)), "parts")[1] for index in range(2)]
    digest = manifest.combined_digest([result.output_digest for result in results])
    whole = ref(results[0]).model_copy(update={"output_digest": digest})
    assert len(ArtifactReader(root, whole).rows(Score)) == 200


# -- failures ----------------------------------------------------------------------------------------------------------


def test_unexpected_error(root: Path) -> None:
    code, result, output = run(root, request(), "bad")
    assert (code, result.reason, result.message) == (1, "RuntimeError", "RuntimeError: out of ideas")
    assert "Traceback" in output
    assert not any(path.name.startswith("a1-") for path in artifact(root).iterdir())


def test_sys_exit_is_no_success(root: Path) -> None:
    code, result, _ = run(root, request(), "leave")
    assert (code, result.reason) == (1, "SystemExit")


def test_long_message_is_cut(root: Path) -> None:
    code, result, _ = run(root, request(), "refuse")
    assert (code, result.reason) == (65, "DataError")
    assert result.message.startswith("file.jsonl, row 7, field answer")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", 2),
        ("[]", 2),
        (json.dumps({**request().dump(), "stage": "brew"}), 78),
        (json.dumps({**request().dump(), "stage": "../../escape"}), 78),
        (json.dumps({**request().dump(), "attempt": 0}), 2),
        (json.dumps({**request().dump(), "parameters": {"seed": 1}}), 78),
        (json.dumps({**request().dump(), "parameters": {**PARAMETERS, "sheds": 1}}), 78),
        (json.dumps({**request().dump(), "inputHash": "../../escape"}), 78),
        (json.dumps({**request().dump(), "inputHash": "x" * 9000}), 78),
        (json.dumps({**request().dump(), "cycle": {"name": "../up", "uid": "u"}}), 78),
        (json.dumps({**request().dump(), "cycle": {"name": "c", "uid": "/etc"}}), 78),
        (json.dumps({**request().dump(), "token": "a/../b"}), 78),
        (json.dumps({**request().dump(), "shard": {"index": 2, "count": 2}}), 78),
    ],
)
def test_bad_requests(root: Path, text: str, code: int) -> None:
    found, result, output = run(root, text, "parts")
    assert (found, result.exit_code) == (code, code), output
    assert "Traceback" not in output
    assert not list(root.iterdir())


def test_missing_workspace(root: Path) -> None:
    code, result, _ = run(root / "not-mounted", request(), "parts")
    assert (code, result.reason) == (78, "ConfigError")
    assert not (root / "not-mounted").exists()


def test_no_request(root: Path) -> None:
    assert run(root, "", "parts")[0] == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_result_goes_into_a_mounted_file(root: Path, tmp_path: Path) -> None:
    """A pod's termination log is a bind mount: it can be written, not replaced."""
    log, source = tmp_path / "result.json", tmp_path / "log-on-the-node"
    log.touch()
    source.touch()
    if subprocess.run(["mount", "--bind", source, log], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        assert start(root, request(), "bad").wait(30) == 1
        assert StageResult.model_validate_json(source.read_text()).reason == "RuntimeError"
    finally:
        subprocess.run(["umount", log], check=True)


# -- corruption --------------------------------------------------------------------------------------------------------


def damage_manifest(folder: Path) -> Path:
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:100])
    return path


def binary_manifest(folder: Path) -> Path:
    path = folder / "manifest.json"
    path.write_bytes(b"\xff\xfe\x00")
    return path


def edit_manifest(folder: Path) -> Path:
    path = folder / "manifest.json"
    head, found, tail = path.read_text().rpartition('"sha256": "')
    path.write_text(f"{head}{found}0{tail[1:]}")
    return path


def newer_manifest(folder: Path) -> Path:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schemaVersion": 2, "news": True}))
    return path


def change_part(folder: Path) -> Path:
    path = next(folder.rglob("part-3.bin"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    return path


def truncate_part(folder: Path) -> Path:
    path = next(folder.rglob("part-3.bin"))
    path.write_bytes(path.read_bytes()[:-1])
    return path


def remove_part(folder: Path) -> Path:
    path = next(folder.rglob("part-3.bin"))
    path.unlink()
    return path


def lead_out(folder: Path) -> Path:
    path = next(folder.rglob("part-3.bin"))
    outside = folder.parents[3] / "outside.bin"
    shutil.move(path, outside)
    path.symlink_to(outside)
    return path


@pytest.mark.parametrize(
    "damage",
    [
        damage_manifest,
        binary_manifest,
        edit_manifest,
        newer_manifest,
        change_part,
        truncate_part,
        remove_part,
        lead_out,
    ],
)
def test_corruption_is_named(root: Path, published: tuple[Path, StageResult], damage: Any) -> None:
    shutil.copytree(published[0], root, dirs_exist_ok=True, symlinks=True)
    path = damage(artifact(root))
    code, result, output = run(root, request(), "parts")
    assert (code, result.reason) == (65, "CorruptArtifact")
    assert str(path) in result.message
    assert "remove" in result.message
    assert "Traceback" not in output


def test_manifest_of_another_artifact(root: Path, published: tuple[Path, StageResult]) -> None:
    shutil.copytree(artifact(published[0]), root / paths.artifact("score", "other"))
    assert run(root, request(input_hash="other"), "parts")[0] == 65


# -- a full disk -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("behaviour", ["fill", "fill_table"])
def test_full_disk(root: Path, behaviour: str) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", root], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        code, result, _ = run(root, request(), behaviour)
        assert (code, result.reason) == (75, "DiskFull")
        assert "free some space" in result.message
        assert str(root) in result.message
        assert not list(root.rglob("manifest.json"))
        assert not list(root.rglob("*.bin"))  # the half-written parts gave their space back
        assert run(root, request(attempt=2), "parts")[0] == 0  # … so that the next attempt has room
    finally:
        subprocess.run(["umount", root], check=True)


# -- stopping, fences, crashes -----------------------------------------------------------------------------------------


def test_sigterm_checkpoints(root: Path) -> None:
    process = start(root, request(), "wait")
    until(root / "ready", process)
    process.terminate()
    code, result, _ = finish(process, root)
    assert (code, result.reason) == (85, "Checkpointed")
    assert result.checkpoint_step >= 0


def test_sigterm_at_any_moment_of_publishing_is_no_loss(root: Path, published: tuple[Path, StageResult]) -> None:
    process = start(root, request(), "gate")
    until(root / "ready", process)
    (root / "go").touch()
    for _ in range(20):
        process.terminate()
        time.sleep(0.005)
    code, result, _ = finish(process, root)
    assert code == 85 or result.output_digest == published[1].output_digest
    code, result, _ = run(root, request(attempt=2), "parts")
    assert (code, result.output_digest) == (0, published[1].output_digest)


def test_old_attempt_publishes_nothing_after_a_newer_one_began(root: Path) -> None:
    old = start(root, request(attempt=1), "gate")
    until(root / "ready", old)
    code, _, _ = run(root, request(attempt=2), "bad")
    assert code == 1
    (root / "go").touch()
    code, result, _ = finish(old, root)
    assert (code, result.reason) == (75, "Fenced")
    assert not (artifact(root) / "manifest.json").exists()
    assert names(artifact(root)) <= {"work"}
    code, result, _ = run(root, request(attempt=1), "parts")  # nor may it start again
    assert (code, result.reason) == (75, "Fenced")


def test_restart_token_is_no_rival(root: Path) -> None:
    assert run(root, request(attempt=5), "bad")[0] == 1
    assert run(root, request(attempt=1, token="again", input_hash="d0d0"), "parts")[0] == 0


def test_two_cycles_make_the_same_artifact(root: Path, published: tuple[Path, StageResult]) -> None:
    """The first to publish wins, the other takes it over; neither touches what the other is writing."""
    slow = start(root, request(), "gate")
    until(root / "ready", slow)
    other = request(cycle=CycleRef(name="other", uid="uid-2"))
    code, first, _ = run(root, other, "parts")
    assert code == 0
    before = (artifact(root) / "manifest.json").read_bytes()
    (root / "go").touch()
    code, second, _ = finish(slow, root)
    assert (code, second.output_digest) == (0, first.output_digest)
    assert second.usage["gpuSeconds"] == 1.5  # its work was not needed, but it was done
    assert (artifact(root) / "manifest.json").read_bytes() == before
    assert len(names(artifact(root))) == 2
    ArtifactReader(root, ref(first)).folder_of("model")


@pytest.mark.parametrize(
    "point",
    [
        *(f"{when}:{name}" for name in ("fsync", "link", "clean", "result") for when in ("before", "after")),
        "after:parts",
        "after:commit",
        "after:iteration-link",
    ],
)
def test_crash_while_publishing(root: Path, published: tuple[Path, StageResult], point: str) -> None:
    assert run(root, request(), "parts", point)[0] == -signal.SIGKILL
    code, result, output = run(root, request(attempt=2), "parts")
    assert code == 0, output
    assert result.output_digest == published[1].output_digest
    assert len(names(artifact(root))) == 2
    assert {path.name for path in artifact(root).rglob("*.tmp")} == set()


@pytest.mark.slow
def test_kills_at_random_moments(root: Path, published: tuple[Path, StageResult]) -> None:
    rng = random.Random(3)
    began = time.monotonic()
    process = start(root, request(input_hash="probe"), "parts")
    finish(process, root)
    length = time.monotonic() - began
    for attempt in range(1, 9):
        process = start(root, request(attempt=attempt), "parts")
        time.sleep(rng.uniform(0.0, 1.0) * length)
        process.kill()
        process.communicate()
        folder = artifact(root)
        if (folder / "manifest.json").exists():
            found = manifest.load(folder)
            assert found is not None
            manifest.verify(folder, found)
            assert found.output_digest == published[1].output_digest
            shutil.rmtree(folder)  # again from the start
    code, result, _ = run(root, request(attempt=20), "parts")
    assert (code, result.output_digest) == (0, published[1].output_digest)
    assert len(names(artifact(root))) == 2
