"""Clusters that several processes use, and what crashed runs left behind.

Clusters live in `${XDG_CACHE_HOME:-~/.cache}/medgr2/clusters/<name>/`. Each records who uses it; the first user starts
it, the last one to leave stops it, all under one file lock. This needs nothing from pytest-xdist: it works with every
way of distributing tests, and with none. A cluster whose users are all dead was left by a crash and is removed by the
next one to come, except a developer's (`python -m tests.cluster up`), which has no users and says so.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster import tools
from tests.cluster.control_plane import ControlPlane
from tests.cluster.kwok import Kwok
from tests.cluster.processes import identity, is_alive


def clusters() -> Path:
    return tools.cache() / "clusters"


@contextmanager
def locked() -> Iterator[None]:
    """One process at a time starts, joins, leaves or removes clusters."""
    clusters().mkdir(parents=True, exist_ok=True)
    with (clusters() / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class SharedCluster:
    """This process's use of a cluster."""

    def __init__(self, name: str) -> None:
        self.control_plane = ControlPlane(clusters() / name)
        self._kwok = Kwok(self.control_plane)

    def join(self) -> ControlPlane:
        """Starts the cluster unless somebody did."""
        with locked():
            remove_leftovers()
            if not self.control_plane.healthy():
                self.control_plane.stop()
                self.control_plane.start()
            self._users().mkdir(exist_ok=True)
            (self._users() / f"{os.getpid()}.json").write_text(json.dumps(identity(os.getpid())))
        return self.control_plane

    def kwok(self) -> Kwok:
        """Adds the simulated nodes unless somebody did; join first."""
        with locked():
            if not self._kwok.running():
                self._kwok.start()
        return self._kwok

    def leave(self) -> None:
        """Stops the cluster if nobody else uses it."""
        with locked():
            (self._users() / f"{os.getpid()}.json").unlink(missing_ok=True)
            if not _live_users(self.control_plane.folder):
                self.control_plane.stop()

    def _users(self) -> Path:
        return self.control_plane.folder / "users"


class KeptCluster:
    """A developer's cluster: stays until `down`."""

    def __init__(self, name: str = "dev") -> None:
        self.control_plane = ControlPlane(clusters() / name)

    def up(self, level: str) -> ControlPlane:
        with locked():
            remove_leftovers()
            if not self.control_plane.healthy():
                self.control_plane.stop()
                self.control_plane.start()
                (self.control_plane.folder / "keep").touch()
            kwok = Kwok(self.control_plane)
            if level == "kwok" and not kwok.running():
                kwok.start()
        return self.control_plane

    def down(self) -> bool:
        """Whether there was anything."""
        with locked():
            found = self.control_plane.folder.exists()
            self.control_plane.stop()
        return found


def remove_leftovers() -> list[str]:
    """Stops and removes clusters that nobody uses; gives their names. Call it with the lock held."""
    removed = []
    for folder in sorted(path for path in clusters().iterdir() if path.is_dir()):
        if not (folder / "keep").exists() and not _live_users(folder):
            ControlPlane(folder).stop()
            removed.append(folder.name)
    return removed


def _live_users(folder: Path) -> list[Path]:
    return [path for path in (folder / "users").glob("*.json") if is_alive(json.loads(path.read_text()))]
