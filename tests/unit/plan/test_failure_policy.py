"""The table of failure classes, row by row, and the waits between attempts."""

from __future__ import annotations

import pytest

from medgr2_api.scheduling import FailurePolicy
from medgr2_operator.plan.failure_policy import RULES, AttemptEnd, FailureClass, StopReason, backoff_seconds, classify

P, A, C, I = FailureClass  # noqa: E741


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        # bad configuration, bad data
        *[(AttemptEnd(code), P) for code in (2, 64, 65, 78)],
        (AttemptEnd(65, "DisruptionTarget"), P),
        # the program's own failures
        (AttemptEnd(1), A),
        (AttemptEnd(75), A),
        (AttemptEnd(137), A),
        (AttemptEnd(-9), A),
        (AttemptEnd(137, "OOMKilled"), A),
        (AttemptEnd(None, "OOMKilled"), A),
        (AttemptEnd(143, "OOMKilled"), A),
        (AttemptEnd(1, "SidecarCrashLoop"), A),
        # checkpoints
        (AttemptEnd(85, progressed=True), C),
        (AttemptEnd(85, "DisruptionTarget", progressed=True), C),
        (AttemptEnd(85), I),
        # the infrastructure
        (AttemptEnd(143), I),
        (AttemptEnd(1, "DisruptionTarget"), I),
        (AttemptEnd(75, "DisruptionTarget"), I),
        (AttemptEnd(None, "RendezvousTimeout"), I),
        (AttemptEnd(1, "RendezvousTimeout"), I),
        (AttemptEnd(reason="JobVanished"), I),
        (AttemptEnd(stop=StopReason.VANISHED, reason=StopReason.VANISHED), I),
        (AttemptEnd(stop=StopReason.NODE_LOST, reason=StopReason.NODE_LOST), I),
        (AttemptEnd(None), I),
        # what the planner asked for
        *[
            (AttemptEnd(code, stop=stop), C)
            for stop in (StopReason.SUSPENDED, StopReason.BUDGET_EXCEEDED, StopReason.CYCLE_FAILED)
            for code in (None, 1, 85, 137, 143)
        ],
        (AttemptEnd(85, stop=StopReason.TIMEOUT, progressed=True), C),
        (AttemptEnd(85, stop=StopReason.TIMEOUT), A),
        (AttemptEnd(None, stop=StopReason.TIMEOUT), A),
        (AttemptEnd(137, stop=StopReason.TIMEOUT), A),
        (AttemptEnd(None, stop=StopReason.PENDING_DEADLINE), P),
        (AttemptEnd(85, stop=StopReason.PENDING_DEADLINE, progressed=True), P),
    ],
)
def test_row(ending: AttemptEnd, expected: FailureClass) -> None:
    assert classify(ending) is expected


def test_every_row_decides_something() -> None:
    endings = [
        AttemptEnd(code, reason, stop, progressed)
        for code in (None, 1, 2, 65, 85, 143)
        for reason in ("", "OOMKilled", "RendezvousTimeout", "BudgetSpent")
        for stop in ("", *StopReason)
        for progressed in (False, True)
    ]
    deciding = {next(row.seen for row in RULES if row.applies(ending)) for ending in endings}
    assert deciding == {row.seen for row in RULES}


def test_backoff_doubles_up_to_the_limit() -> None:
    policy = FailurePolicy(backoff_seconds=10, max_backoff_seconds=600)
    waits = [backoff_seconds(policy, losses, 0) for losses in (1, 2, 3, 6, 7, 8, 5000)]
    assert waits == [10, 20, 40, 320, 600, 600, 600]


def test_backoff_starts_anew_after_a_long_run() -> None:
    assert backoff_seconds(FailurePolicy(), 40, ran_seconds=599) == 600
    assert backoff_seconds(FailurePolicy(), 40, ran_seconds=600) == 10


def test_no_backoff() -> None:
    assert backoff_seconds(FailurePolicy(backoff_seconds=0), 9, 0) == 0
