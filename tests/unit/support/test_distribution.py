"""The order of the tests, and which of them stay together."""

from __future__ import annotations

from pathlib import Path

from tests.support.distribution import COMPUTE, FIRST, SPREAD, TOGETHER, WAIT, in_order, share_of

ROOT = Path(__file__).parents[3]


def test_what_waits_and_what_computes_take_turns() -> None:
    assert in_order(
        [
            "tests/cluster/test_cli.py::test_a",
            "tests/cluster/test_failures.py::test_a[x::1]",
            "tests/cluster/test_failures.py::test_b",
            "tests/cluster/chart/test_chart.py::test_a",
            "tests/cluster/test_kueue.py::test_a",
            "tests/cluster/test_cli.py::test_b",
            "tests/cluster/chart/test_rbac.py::test_a",
            "tests/e2e/test_loop.py::test_a",
            "tests/integration/test_policy.py::test_a",
            "tests/integration/test_reward.py::test_a",
            "tests/unit/test_a.py::test_a",
        ]
    ) == [
        "tests/integration/test_policy.py::test_a",
        "tests/cluster/chart/test_chart.py::test_a",
        "tests/cluster/chart/test_rbac.py::test_a",
        "tests/cluster/test_kueue.py::test_a",
        "tests/cluster/test_cli.py::test_a",
        "tests/cluster/test_cli.py::test_b",
        "tests/e2e/test_loop.py::test_a",
        "tests/cluster/test_failures.py::test_a[x::1]",
        "tests/integration/test_reward.py::test_a",
        "tests/cluster/test_failures.py::test_b",
        "tests/unit/test_a.py::test_a",
    ]


def test_tests_of_a_file_or_of_a_folder_that_shares_a_cluster_stay_together() -> None:
    assert share_of("tests/unit/test_a.py::test_a[b::c]") == "tests/unit/test_a.py"
    assert share_of("tests/cluster/chart/test_rbac.py::test_a") == "tests/cluster/chart/"
    assert share_of("tests/cluster/test_failures.py::test_a") == "tests/cluster/test_failures.py::test_a"


def test_what_is_named_is_there() -> None:
    assert [name for name in (*FIRST, *SPREAD) if not (ROOT / name).is_file()] == []
    assert [name for name in (*TOGETHER, *WAIT, *COMPUTE) if not (ROOT / name).is_dir()] == []
