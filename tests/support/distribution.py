"""pytest plugin: which tests begin first, and which go to the same process of pytest-xdist."""

from __future__ import annotations

from collections.abc import Collection
from itertools import zip_longest
from typing import Any

import pytest

#: Files that take longest, in this order: they begin first, or one would be left when all else is done. Those that need
#: the real node run beside each other, so that it can end with them.
FIRST = (
    "tests/cluster/test_loop_on_node.py",
    "tests/integration/test_distributed.py",
    "tests/integration/test_policy.py",
    "tests/integration/test_vllm.py",
    "tests/cluster/chart/test_rbac.py",
    "tests/cluster/test_kueue.py",
    "tests/cluster/test_cli_node.py",
    "tests/cluster/test_node.py",
    "tests/cluster/test_waiting.py",
)
#: Files whose tests share nothing and so go one by one to whoever is free. All others' stay together.
SPREAD = ("tests/cluster/test_failures.py",)
#: Folders whose files share what takes long to make, and so stay together too.
TOGETHER = ("tests/cluster/chart/",)
#: Folders whose tests mostly wait, and those whose tests compute and take longest. They take turns: while all processes
#: wait at the same time, nobody computes.
WAIT, COMPUTE = ("tests/cluster/",), ("tests/e2e/", "tests/integration/")


def share_of(nodeid: str) -> str:
    """Tests of the same share go to the same process: mostly those of a file."""
    file = nodeid.partition("::")[0]
    if file in SPREAD:
        return nodeid
    return next((folder for folder in TOGETHER if file.startswith(folder)), file)


def in_order(nodeids: Collection[str]) -> list[str]:
    """First FIRST, then what waits and what computes by turns, then all else; a share's tests beside each other."""
    shares: dict[str, list[str]] = {}
    for nodeid in nodeids:
        shares.setdefault(share_of(nodeid), []).append(nodeid)
    first = [
        name for file in FIRST for name, tests in shares.items() if any(test.startswith(f"{file}::") for test in tests)
    ]
    waiting, computing = (
        [name for name in shares if name.startswith(folders) and name not in first] for folders in (WAIT, COMPUTE)
    )
    turns = [name for pair in zip_longest(waiting, computing) for name in pair if name]
    return [nodeid for name in dict.fromkeys([*first, *turns, *shares]) for nodeid in shares[name]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    by_id = {item.nodeid: item for item in items}
    if len(by_id) == len(items):  # else the same file was asked for twice, in an order that somebody chose
        items[:] = [by_id[nodeid] for nodeid in in_order(by_id)]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What hands the shares out to processes, in their order."""
    from xdist.scheduler import LoadFileScheduling

    class Shares(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return share_of(nodeid)

    return Shares(config, log)
