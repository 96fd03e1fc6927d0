"""For all tests."""

from __future__ import annotations

import gc
import signal

import pytest

pytest_plugins = ["tests.left_out"]

#: Files that take longest, and so begin first: a file's tests run one after the other, and nothing else should be left.
LONGEST = ("test_loop_on_node.py", "test_seeded_schedules.py", "test_distributed.py", "test_policy.py")

# A process that a script starts in its background ignores SIGINT, and so would all that it starts: also the commands
# that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionstart() -> None:
    """Collecting imports torch and all else: looking for garbage among it takes time and finds none."""
    gc.disable()


def pytest_collection_finish() -> None:
    """What is there now stays, so the collector need not look at it again."""
    gc.enable()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves them to the front; all else stays in its order."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
