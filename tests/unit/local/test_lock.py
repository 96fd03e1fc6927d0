"""One run per workspace: a second one is refused, the stages that a killed one left behind are waited for."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from medgr2_api import paths
from medgr2_operator.local.lock import RunLock, WorkspaceBusy


def test_a_second_run_is_refused_and_told_who_has_the_workspace(tmp_path: Path) -> None:
    waited: list[int] = []
    with RunLock(tmp_path, waited.append):
        with pytest.raises(WorkspaceBusy, match=f"pid {os.getpid()}") as error, RunLock(tmp_path, waited.append):
            pass
        assert error.value.pid == os.getpid()
    with RunLock(tmp_path, waited.append):
        pass
    assert waited == []


@pytest.fixture
def orphans(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """The lock as stages hold it whose run is dead: an open file, and the pid in it."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    handle = os.open(tmp_path / paths.LOCK, os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    os.write(handle, f"{dead.pid}\n".encode())
    yield handle, dead.pid
    os.close(handle)


def test_stages_that_a_killed_run_left_behind_are_waited_for(tmp_path: Path, orphans: tuple[int, int]) -> None:
    handle, pid = orphans
    waited: list[int] = []

    def wait(holder: int) -> None:
        waited.append(holder)
        threading.Timer(0.5, fcntl.flock, (handle, fcntl.LOCK_UN)).start()

    with RunLock(tmp_path, wait):
        assert (tmp_path / paths.LOCK).read_text() == f"{os.getpid()}\n"
    assert waited == [pid]


def test_but_not_for_ever(tmp_path: Path, orphans: tuple[int, int]) -> None:
    with pytest.raises(WorkspaceBusy, match=f"pid {orphans[1]}"), RunLock(tmp_path, lambda _: None, patience=0.3):
        pass
