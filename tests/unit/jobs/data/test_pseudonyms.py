"""The secret of a workspace, what it makes of names, and who can look them up."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.fetch_fixtures import reference, secrets
from tests.support.fixtures import prepare_parameters, stage_request

from medgr2_api import paths
from medgr2_api.data import Data
from medgr2_api.hashing import sha256_of
from medgr2_api.stage_contract import SECRETS_ENV
from medgr2_jobs.data import pseudonyms, whois
from medgr2_jobs.data.pseudonyms import Names
from medgr2_jobs.errors import ConfigError
from medgr2_jobs.runner.context import StageContext
from medgr2_jobs.store import tar

SOURCE = {"name": "s", "format": "VQAJsonl", "uri": "q.jsonl"}


def data(**changes: object) -> Data:
    return Data.model_validate({"sources": [SOURCE], **changes})


def context(root: Path) -> StageContext:
    request = stage_request("prepare", 0, prepare_parameters(data={"sources": [SOURCE]}))
    return StageContext(request, None, root)


def _make(root: Path, start: object, keys: object) -> None:
    start.wait()
    keys.put(pseudonyms.of_workspace(root))


@pytest.mark.parametrize("links", [True, False])
def test_processes_that_begin_at_once_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    if not links:

        def refuse(*_: object) -> None:
            raise PermissionError(1, "no hard links here")

        monkeypatch.setattr(os, "link", refuse)
    fork = multiprocessing.get_context("fork")
    start, keys = fork.Event(), fork.Queue()
    workers = [fork.Process(target=_make, args=(tmp_path, start, keys)) for _ in range(12)]
    for worker in workers:
        worker.start()
    start.set()
    made = {keys.get(timeout=30) for _ in workers}
    for worker in workers:
        worker.join()
    assert len(made) == 1
    assert len(made.pop()) == 32
    path = tmp_path / paths.PSEUDONYM_KEY
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert pseudonyms.of_workspace(tmp_path) == pseudonyms.of_workspace(tmp_path)


def test_two_workspaces_have_two_secrets(tmp_path: Path) -> None:
    first, second = (Names(pseudonyms.of_workspace(tmp_path / name), clear=False) for name in "ab")
    assert first.identity("1234567") != second.identity("1234567")
    assert len(first.identity("1234567")) == 16
    assert first.identity("") == ""


def test_a_name_is_called_otherwise_as_patient_file_and_origin() -> None:
    """Or the folder of a patient would say whose pseudonym stands in the table."""
    names = Names(b"k" * 32, clear=False)
    made = [names.identity("Doe"), names.file("Doe"), names.group("Doe")]
    assert len({pseudonym.rpartition("-")[2] for pseudonym in made}) == 3


def test_nobody_who_knows_the_artifacts_can_try_numbers(tmp_path: Path) -> None:
    """What the manifest says of the cycle is no key: neither its seed, nor anything made of it."""
    names = Names(pseudonyms.of_workspace(tmp_path), clear=False)
    made = names.identity("1234567")
    for seed in range(100):
        salt = sha256_of({"patients": seed})
        assert hashlib.sha256(f"{salt}/1234567".encode()).hexdigest()[:16] != made


@pytest.mark.parametrize("damage", ["", "short\n", "Z" * 64 + "\n", "0" * 64 + "0\n"])
def test_a_damaged_secret_is_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    path = tmp_path / paths.PSEUDONYM_KEY
    path.parent.mkdir(parents=True)
    path.write_text(damage)
    monkeypatch.setattr(pseudonyms, "_KEY_SECONDS", 0.1)
    with pytest.raises(ConfigError, match="must hold 64 hex digits"):
        pseudonyms.of_workspace(tmp_path)
    assert path.read_text() == damage


def test_a_lost_secret_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pseudonyms.opened(context(tmp_path), data()) as names:
        before = names.file("a.png")
    assert "is gone" not in caplog.text
    (tmp_path / paths.PSEUDONYM_KEY).unlink()
    with pseudonyms.opened(context(tmp_path), data()) as names:
        assert names.file("a.png") != before
    assert "is gone, and pseudonyms were made with it" in caplog.text


def test_a_secret_of_the_spec_is_used_everywhere_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRETS_ENV, str(secrets(tmp_path / "secrets", long="x" * 16, short="x" * 15)))
    made = []
    for site in ("here", "there"):
        with pseudonyms.opened(context(tmp_path / site), data(pseudonymSecretRef=reference("long"))) as names:
            made.append(names.identity("Doe"))
        assert not (tmp_path / site / paths.PSEUDONYM_KEY).exists()
    assert made[0] == made[1]
    with (
        pytest.raises(ConfigError, match="fewer than 16 characters"),
        pseudonyms.opened(context(tmp_path), data(pseudonymSecretRef=reference("short"))),
    ):
        pass


def test_phantoms_need_no_secret_and_keep_their_names(tmp_path: Path) -> None:
    drawn = Data.model_validate({"sources": [{"name": "p", "format": "Phantom", "phantom": {}}]})
    with pseudonyms.opened(context(tmp_path), drawn) as opened:
        names = opened.of(drawn.sources[0])
        assert (names.file("images/0.png"), names.record(3, "0-count")) == ("images/0.png", "0-count")
    assert not (tmp_path / paths.PRIVATE).exists()


def test_the_owner_can_look_up_what_was_shown_also_after_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown, item = [], ""

    def read() -> None:
        nonlocal item
        with pseudonyms.opened(context(tmp_path), data()) as opened:
            names = opened.of(data().sources[0])
            shown.extend([names.file("Doe/Jane 1.png"), names.file("Doe/Jane 1.png"), names.group("Doe\nclinic")])
            item = f"s/{names.record(7, 'doe-7')}"
            names.file("no UTF-8 \udc80 \ud800.png")
            raise ValueError("too many bad records")

    with pytest.raises(ValueError, match="too many"):
        read()
    (kept,) = (tmp_path / paths.NAMES).iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert len(kept.read_text().splitlines()) == 4
    assert whois.main([shown[0], shown[2], item, "--workspace", str(tmp_path)]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["name"] for line in found] == ["Doe/Jane 1.png", "Doe\nclinic", "doe-7"]
    assert {line["source"] for line in found} == {"s"}
    assert whois.main(["file-0000000000000000", "--workspace", str(tmp_path)]) == 1
    assert "nothing is known of file-0000000000000000" in capsys.readouterr().err


def test_the_command_looks_up(tmp_path: Path) -> None:
    with pseudonyms.opened(context(tmp_path), data()) as names:
        shown = names.file("Doe.png")
    command = [sys.executable, "-m", "medgr2_operator.cli.app", "whois", shown, "--workspace", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["name"] == "Doe.png"


def test_what_is_private_is_not_handed_out(tmp_path: Path) -> None:
    with pseudonyms.opened(context(tmp_path), data()) as names:
        names.file("Doe.png")
    (tmp_path / "cycles").mkdir()
    (tmp_path / "cycles/link").symlink_to(tmp_path / "private")
    (tmp_path / "cycles/file").symlink_to(tmp_path / paths.PSEUDONYM_KEY)
    for path in ("private", "private/names", str(paths.PSEUDONYM_KEY), "cycles/link", "cycles/file"):
        with (
            pytest.raises(ConfigError, match="for the owner of the volume alone"),
            (tmp_path / "x.tar").open("wb") as to,
        ):
            tar.export(tmp_path, path, to)
    with (tmp_path / "x.tar").open("wb") as to:
        tar.export(tmp_path, ".", to)
    written = (tmp_path / "x.tar").read_bytes()
    assert b"Doe.png" not in written
    assert (tmp_path / paths.PSEUDONYM_KEY).read_bytes() not in written
    assert b"private/names" not in written
