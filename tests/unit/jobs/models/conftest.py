"""One small workspace for all tests here."""

from __future__ import annotations

import pytest
from tests.support import policy_fixtures


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> policy_fixtures.PolicyWorkspace:
    return policy_fixtures.build(tmp_path_factory.mktemp("workspace"))
