"""For all tests."""

from __future__ import annotations

import gc
import signal

import pytest

from medgr2_api import redaction

pytest_plugins = ["tests.support.skip_report", "tests.support.cpu_report", "tests.support.distribution"]

# A process that a script starts in its background ignores SIGINT, and so would all that it starts: also the commands
# that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _no_secrets_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test reads as a secret may be an ordinary word of the next."""
    monkeypatch.setattr(redaction, "_process", redaction.Redactor())


def pytest_sessionstart() -> None:
    """Collecting imports torch and all else: looking for garbage among it takes time and finds none."""
    gc.disable()


def pytest_collection_finish() -> None:
    """What is there now stays, so the collector need not look at it again."""
    gc.enable()
    gc.freeze()
