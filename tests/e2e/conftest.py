"""Workspaces of `medgr2 run` over fake stages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.run_fixtures import RunWorkspace


@pytest.fixture
def workspace(tmp_path: Path) -> RunWorkspace:
    return RunWorkspace(tmp_path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunWorkspace:
    workspace = RunWorkspace(tmp_path_factory.mktemp("undisturbed"))
    code, output = workspace.run()
    assert code == 0, output
    return workspace
