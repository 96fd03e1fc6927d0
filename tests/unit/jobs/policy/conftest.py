"""One small workspace for all tests here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))

import policy_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> policy_world.World:
    return policy_world.build(tmp_path_factory.mktemp("world"))
