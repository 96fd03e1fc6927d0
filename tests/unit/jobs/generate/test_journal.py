"""Rows that were paid for: kept through kills, full disks and other processes."""

from __future__ import annotations

import asyncio
import errno
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.curate_fixtures import candidate

from medgr2_jobs.errors import CorruptArtifact, DiskFull, TemporaryError
from medgr2_jobs.generate.append_only_log import AppendOnlyLog
from medgr2_jobs.generate.journal import Journal, PaidAnswer
from medgr2_jobs.generate.spend_ledger import Charge
from medgr2_jobs.store.rows.candidates import Candidate

ROWS = [candidate(name, "i", "größer?\nkleiner?") for name in ("t1", "t2", "t3")]


def found(folder: Path, *added: Candidate) -> list[str]:
    """Which rows are there when the journal is opened; then rows are added, and it is closed."""

    async def scenario() -> list[str]:
        journal = Journal(folder, "a test")
        names = [row.triplet_id for row in ROWS if journal.find(row.triplet_id, "i") == row]
        for row in added:
            await journal.add(row, "uid", None)
        await journal.close()
        return names

    return asyncio.run(scenario())


def test_a_line_torn_by_a_kill_spoils_nothing_that_is_written_after_it(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    assert found(folder, ROWS[0], ROWS[1]) == []
    path = folder / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    assert found(folder, ROWS[2]) == ["t1"]
    assert found(folder) == ["t1", "t3"]


def test_what_an_answer_came_to_stands_in_its_line(tmp_path: Path) -> None:
    answer = PaidAnswer("{", 1, 100, 50, 0, 0.25)

    async def scenario() -> None:
        journal = Journal(tmp_path, "a test")
        await journal.add_answer("t1", "i", answer, "uid", Charge(3, 0.25))
        await journal.add(ROWS[1], "uid", Charge(5, 0.5))
        await journal.add(ROWS[2], "uid", None)
        await journal.close()

    asyncio.run(scenario())
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 3
    journal = Journal(tmp_path, "a test")
    assert journal.charges("uid") == {3: 0.25, 5: 0.5}
    assert journal.charges("of another cycle") == {}
    assert (journal.answer("t1", "i"), journal.find("t1", "i")) == (answer, None)
    assert journal.find("t2", "i") == ROWS[1]
    asyncio.run(journal.close())


def test_a_journal_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """It had rows, and no word of what they came to."""
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(asdict(row)) + "\n" for row in ROWS))
    assert found(tmp_path) == ["t1", "t2", "t3"]


def test_a_row_of_another_image_is_another_row(tmp_path: Path) -> None:
    found(tmp_path, replace(ROWS[0], image_sha256="j"))
    assert found(tmp_path) == []


@pytest.mark.parametrize(
    "change",
    [{"question": None, "surplus": 1}, {"outcome": "good"}, {"options": 3}, {"answer": {}}, {"settles": 1}],
)
def test_a_row_of_another_version_is_refused_by_name(tmp_path: Path, change: dict[str, Any]) -> None:
    found(tmp_path, ROWS[0])
    path = tmp_path / "journal.jsonl"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}) + "\n")
    with pytest.raises(CorruptArtifact, match=r"journal\.jsonl: triplet 't1' is no row of table candidates"):
        found(tmp_path)


def test_a_row_that_does_not_fit_on_the_disk_is_said_to_be_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        written = AppendOnlyLog(tmp_path / "journal.jsonl", "a test")
        written.append({"triplet_id": "t1"})
        whole = written._stream

        class Full:
            """A disk that takes a part, as write(2) may."""

            def write(self, data: bytes) -> int:
                return whole.write(data[:9]) or 0

            def __getattr__(self, name: str) -> Any:
                return getattr(whole, name)

        monkeypatch.setattr(written, "_stream", Full())
        with pytest.raises(DiskFull, match="free some space") as error:
            written.append({"triplet_id": "t2"})
        assert isinstance(error.value.__cause__, OSError)
        assert error.value.__cause__.errno == errno.ENOSPC
        monkeypatch.setattr(written, "_stream", whole)
        with pytest.raises(DiskFull):  # nothing may follow a torn line
            written.append({"triplet_id": "t3"})
        await written.close()

    asyncio.run(scenario())
    assert (tmp_path / "journal.jsonl").read_bytes() == b'{"triplet_id": "t1"}\n'


def test_whoever_comes_second_is_told_who_is_at_work(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = Journal(tmp_path, "attempt 1 of cycle a")
        with pytest.raises(TemporaryError, match="attempt 1 of cycle a is at work"):
            Journal(tmp_path, "attempt 1 of cycle b")
        await journal.close()
        await Journal(tmp_path, "attempt 1 of cycle b").close()

    asyncio.run(scenario())


def test_a_journal_that_its_holder_removed_is_made_anew(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = Journal(tmp_path, "a")
        (tmp_path / "journal.jsonl").unlink()
        other = Journal(tmp_path, "b")  # published meanwhile, or not: the stage looks
        await other.add(ROWS[0], "uid", None)
        await other.close()
        await journal.close()

    asyncio.run(scenario())
    assert found(tmp_path) == ["t1"]
