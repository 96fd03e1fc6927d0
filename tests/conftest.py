"""For all tests."""

from __future__ import annotations

import gc
import signal
from typing import Any

import pytest

from medgr2_api import redaction

pytest_plugins = ["tests.support.skip_report", "tests.support.cpu_report"]

#: Files that take longest, in this order: they begin first, or one would be left when all else is done. Those that need
#: the real node run beside each other, so that it can end with them.
FIRST = (
    "test_loop_on_node.py",
    "test_distributed.py",
    "test_policy.py",
    "test_vllm.py",
    "test_rbac.py",
    "test_kueue.py",
    "test_cli_node.py",
    "test_node.py",
    "test_waiting.py",
)
#: Files whose tests share nothing and so go one by one, last, to whoever is free. All others' stay together.
SPREAD = ("test_failures.py",)
#: Folders whose files share what takes long to make, and so stay together too.
TOGETHER = ("tests/cluster/chart/",)

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts them in that order; all else stays in its own."""
    middle = len(FIRST)
    places = {name: place for place, name in enumerate(FIRST)} | dict.fromkeys(SPREAD, middle + 1)
    items.sort(key=lambda item: places.get(item.path.name, middle))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What hands the tests out to processes."""
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            together = next((folder for folder in TOGETHER if folder in file), file)
            return nodeid if file.endswith(SPREAD) else together

    return Files(config, log)
