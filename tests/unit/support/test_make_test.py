"""What `make test` does to the computer: only what is in .venv and the cache, unless more is asked for."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.cluster import __main__ as command
from tests.cluster import system, tools

ROOT = Path(__file__).parents[3]


def commands(*arguments: str) -> str:
    """What make would do, whatever the make that runs these tests was told."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("LEVEL", "MAKEFLAGS", "MAKEOVERRIDES")
    }
    done = subprocess.run(
        ["make", "-n", "test", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_a_node_is_only_run_where_it_is_asked_for() -> None:
    assert "build --level kwok" in commands()
    assert "MEDGR2_TEST_LEVEL=kwok" in commands()
    assert "build --level node" in commands("LEVEL=node")


def test_what_is_installed_is_said_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "missing", lambda names: list(names))
    monkeypatch.setattr(system, "missing", lambda: ["containerd", "runc"])
    node = "\n".join(command.announcement("node", ["etcd"]))
    assert "installs on this computer, from Debian: containerd, runc" in node
    assert "30 GB" in node
    kwok = "\n".join(command.announcement("kwok", ["etcd"]))
    assert "builds 1 programs" in kwok
    assert "Debian" not in kwok
    monkeypatch.setattr(tools, "missing", lambda names: [])
    assert command.announcement("kwok", ["etcd"]) == []


@pytest.mark.parametrize("level", ["", "kwok", "control-plane"])
def test_no_package_is_installed_unasked(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(system.LEVEL_ENV, level)
    assert "only installed where it is asked for" in system.not_installable()
