"""The journal of paid answers: whole rows come back, a torn one is forgotten and spoils nothing after it."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from medgr2_jobs.errors import DiskFull
from medgr2_jobs.generate.journal import Journal


def rows_in(path: Path, *added: dict[str, Any]) -> list[dict[str, Any]]:
    """What is in the journal when it is opened; then rows are added, and it is closed."""
    journal = Journal(path)
    found = list(journal.rows)
    for row in added:
        journal.append(row)
    journal.close()
    return found


def test_a_line_torn_by_a_kill_spoils_nothing_that_is_written_after_it(tmp_path: Path) -> None:
    path = tmp_path / "work" / "journal.jsonl"
    first, second, third = ({"triplet_id": name, "question": "größer?\nkleiner?"} for name in ("t1", "t2", "t3"))
    assert rows_in(path, first, second) == []
    path.write_bytes(path.read_bytes()[:-7])
    assert rows_in(path, third) == [first]
    assert rows_in(path) == [first, third]


def test_a_row_that_does_not_fit_on_the_disk_is_said_to_be_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    whole = journal._stream

    class Full:
        """A disk that takes a part, as write(2) may."""

        def write(self, data: bytes) -> int:
            return whole.write(data[:9]) or 0

    monkeypatch.setattr(journal, "_stream", Full())
    with pytest.raises(DiskFull, match="free some space") as error:
        journal.append({"triplet_id": "t1"})
    assert isinstance(error.value.__cause__, OSError)
    assert error.value.__cause__.errno == errno.ENOSPC
    whole.close()
    assert rows_in(path) == []
