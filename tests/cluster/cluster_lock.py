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

from tests.cluster import storage, tools
from tests.cluster.control_plane import ControlPlane, Settings
from tests.cluster.kueue import Kueue
from tests.cluster.kwok import Kwok
from tests.cluster.node import NODE_SETTINGS, Bridge, Node
from tests.cluster.processes import ProcessError, identity, is_alive


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

    def __init__(self, name: str, settings: Settings | None = None) -> None:
        self.control_plane = ControlPlane(clusters() / name, settings)
        self._kwok, self._kueue = Kwok(self.control_plane), Kueue(self.control_plane)
        self._node = Node(self.control_plane)

    def join(self) -> ControlPlane:
        """Starts the cluster unless somebody did."""
        with locked():
            remove_leftovers()
            if not self.control_plane.healthy():
                _start(self.control_plane)
            self._users().mkdir(exist_ok=True)
            (self._users() / f"{os.getpid()}.json").write_text(json.dumps(identity(os.getpid())))
        return self.control_plane

    def kwok(self) -> Kwok:
        """Adds the simulated nodes unless somebody did; join first."""
        with locked():
            if not self._kwok.running():
                self._kwok.start()
        return self._kwok

    def node(self) -> Node:
        """Adds the real node unless somebody did; join first, with `NODE_SETTINGS`."""
        with locked():
            if not self._node.running():
                self._node.start()
                storage.start(self._node)
        return self._node

    def kueue(self) -> Kueue:
        """Adds Kueue unless somebody did; join first."""
        with locked():
            if not self._kueue.running():
                self._kueue.start()
        return self._kueue

    def leave(self) -> None:
        """Stops the cluster if nobody else uses it."""
        with locked():
            (self._users() / f"{os.getpid()}.json").unlink(missing_ok=True)
            if not _live_users(self.control_plane.folder):
                _stop(self.control_plane)

    def _users(self) -> Path:
        return self.control_plane.folder / "users"


class KeptCluster:
    """A developer's cluster: stays until `down`."""

    def __init__(self, name: str = "dev") -> None:
        self._folder = clusters() / name

    def up(self, level: str) -> ControlPlane:
        control_plane = ControlPlane(self._folder, NODE_SETTINGS if level == "node" else None)
        with locked():
            remove_leftovers()
            if not control_plane.healthy():
                _start(control_plane)
                (self._folder / "keep").touch()
            elif (level == "node") != (self._folder / Bridge.STATE).exists():
                raise ProcessError("a cluster of another level runs: end it first (make cluster-down)")
            if level == "kwok" and not (kwok := Kwok(control_plane)).running():
                kwok.start()
            if level == "node" and not (node := Node(control_plane)).running():
                node.start()
                storage.start(node)
        return control_plane

    def down(self) -> bool:
        """Whether there was anything."""
        with locked():
            existed = self._folder.exists()
            _stop(ControlPlane(self._folder))
        return existed


def remove_leftovers() -> list[str]:
    """Stops and removes clusters that nobody uses; gives their names. Call it with the lock held."""
    removed = []
    for folder in sorted(path for path in clusters().iterdir() if path.is_dir()):
        if not (folder / "keep").exists() and not _live_users(folder):
            _stop(ControlPlane(folder))
            removed.append(folder.name)
    return removed


def _start(control_plane: ControlPlane) -> None:
    """Starts a control plane anew, on the pods' bridge if its settings say so."""
    _stop(control_plane)
    if control_plane.settings.bind_address == NODE_SETTINGS.bind_address:
        for folder in clusters().iterdir():
            if folder.is_dir() and (folder / Bridge.STATE).exists():
                raise ProcessError(
                    f"cluster {folder.name} has this computer's node; end it first (`make cluster-down`)"
                )
        Bridge(control_plane.folder).up()
    control_plane.start()


def _stop(control_plane: ControlPlane) -> None:
    """Stops whatever of a cluster there is."""
    folder = control_plane.folder
    if (folder / Bridge.STATE).exists():
        Node(control_plane).stop()
        control_plane.processes.stop()
        Bridge(folder).down()
    control_plane.stop()


def _live_users(folder: Path) -> list[Path]:
    return [path for path in (folder / "users").glob("*.json") if is_alive(json.loads(path.read_text()))]
