"""pytest plugin: says at the end what was left out and why; with MEDGR2_NOTHING_LEFT_OUT=1 that is a failure.

Tests are left out where the computer cannot run them (no root, no node). Who relies on a run being complete, as CI
does, must not overlook it.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest

STRICT_ENV = "MEDGR2_NOTHING_LEFT_OUT"


def _left_out(config: pytest.Config) -> Counter[str]:
    """Reason → number of tests."""
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    reports = reporter.stats.get("skipped", []) if reporter else []
    return Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in reports)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for reason, number in _left_out(config).items():
        terminalreporter.write_line(f"left out: {number} tests, because {reason}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get(STRICT_ENV) and not hasattr(session.config, "workerinput") and _left_out(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
