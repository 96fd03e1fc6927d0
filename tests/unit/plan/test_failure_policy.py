"""The table of failure classes, row by row, and the waits between attempts."""

from __future__ import annotations

import pytest

from medgr2_api.scheduling import FailurePolicy
from medgr2_operator.plan.failure_policy import ROWS, Ending, FailureClass, Stop, backoff_seconds, classify

P, A, C, I = FailureClass  # noqa: E741


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        # bad configuration, bad data
        *[(Ending(code), P) for code in (2, 64, 65, 78)],
        (Ending(65, "DisruptionTarget"), P),
        # the program's own failures
        (Ending(1), A),
        (Ending(75), A),
        (Ending(137), A),
        (Ending(-9), A),
        (Ending(137, "OOMKilled"), A),
        (Ending(None, "OOMKilled"), A),
        (Ending(143, "OOMKilled"), A),
        (Ending(1, "SidecarCrashLoop"), A),
        # checkpoints
        (Ending(85, progressed=True), C),
        (Ending(85, "DisruptionTarget", progressed=True), C),
        (Ending(85), I),
        # the infrastructure
        (Ending(143), I),
        (Ending(1, "DisruptionTarget"), I),
        (Ending(75, "DisruptionTarget"), I),
        (Ending(None, "RendezvousTimeout"), I),
        (Ending(1, "RendezvousTimeout"), I),
        (Ending(reason="JobVanished"), I),
        (Ending(stop=Stop.VANISHED, reason=Stop.VANISHED), I),
        (Ending(stop=Stop.NODE_LOST, reason=Stop.NODE_LOST), I),
        (Ending(None), I),
        # what the planner asked for
        *[
            (Ending(code, stop=stop), C)
            for stop in (Stop.SUSPENDED, Stop.BUDGET_EXCEEDED, Stop.CYCLE_FAILED)
            for code in (None, 1, 85, 137, 143)
        ],
        (Ending(85, stop=Stop.TIMEOUT, progressed=True), C),
        (Ending(85, stop=Stop.TIMEOUT), A),
        (Ending(None, stop=Stop.TIMEOUT), A),
        (Ending(137, stop=Stop.TIMEOUT), A),
        (Ending(None, stop=Stop.PENDING_DEADLINE), P),
        (Ending(85, stop=Stop.PENDING_DEADLINE, progressed=True), P),
    ],
)
def test_row(ending: Ending, expected: FailureClass) -> None:
    assert classify(ending) is expected


def test_every_row_decides_something() -> None:
    endings = [
        Ending(code, reason, stop, progressed)
        for code in (None, 1, 2, 65, 85, 143)
        for reason in ("", "OOMKilled", "RendezvousTimeout", "BudgetSpent")
        for stop in ("", *Stop)
        for progressed in (False, True)
    ]
    deciding = {next(row.seen for row in ROWS if row.applies(ending)) for ending in endings}
    assert deciding == {row.seen for row in ROWS}


def test_backoff_doubles_up_to_the_limit() -> None:
    policy = FailurePolicy(backoff_seconds=10, max_backoff_seconds=600)
    waits = [backoff_seconds(policy, losses, 0) for losses in (1, 2, 3, 6, 7, 8, 5000)]
    assert waits == [10, 20, 40, 320, 600, 600, 600]


def test_backoff_starts_anew_after_a_long_run() -> None:
    assert backoff_seconds(FailurePolicy(), 40, ran_seconds=599) == 600
    assert backoff_seconds(FailurePolicy(), 40, ran_seconds=600) == 10


def test_no_backoff() -> None:
    assert backoff_seconds(FailurePolicy(backoff_seconds=0), 9, 0) == 0
