"""How an attempt's end is classified, what it counts against, and how long to wait before the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from medgr2_api.scheduling import FailurePolicy
from medgr2_api.stage_contract import BUDGET_SPENT, PERMANENT_EXIT_CODES, ExitCode


class FailureClass(StrEnum):
    """What an end means for the stage."""

    PERMANENT = "Permanent"
    """Trying again cannot help: the stage fails now."""
    APPLICATION = "Application"
    """Counts against `maxRetries`."""
    CHECKPOINTED = "Checkpointed"
    """Counts against nothing."""
    INFRASTRUCTURE = "Infrastructure"
    """Counts against `maxInfraRestarts`."""


class StopReason(StrEnum):
    """Why the planner ended an attempt; the reason of a Terminating attempt."""

    SUSPENDED = "Suspended"
    BUDGET_EXCEEDED = "BudgetExceeded"
    CYCLE_FAILED = "CycleFailed"
    TIMEOUT = "TimeoutExceeded"
    PENDING_DEADLINE = "PendingDeadlineExceeded"
    SIDECAR = "SidecarCrashLoop"
    """A sidecar does not stay up, so the stage would wait for ever."""
    NODE_LOST = "NodeLost"
    """A pod should have ended long ago, and its node does not say that it has."""
    VANISHED = "JobVanished"
    """Nobody asked: the Job is gone, its pods are still there."""


class LossReason(StrEnum):
    """An executor's reasons for what an exit code does not tell."""

    OUT_OF_MEMORY = "OOMKilled"
    DISRUPTION = "DisruptionTarget"
    """Evicted, preempted, its node lost or drained."""
    RENDEZVOUS = "RendezvousTimeout"
    """The pods of one training did not find each other."""


#: Stops that have nothing to do with the attempt itself.
_FOR_THE_CYCLE = frozenset({StopReason.SUSPENDED, StopReason.BUDGET_EXCEEDED, StopReason.CYCLE_FAILED})
#: The program's own fault, although the code looks like a kill.
_APPLICATION_REASONS = frozenset({LossReason.OUT_OF_MEMORY, StopReason.SIDECAR})
#: A loss that the program has no part in.
_INFRASTRUCTURE_REASONS = frozenset(
    {LossReason.DISRUPTION, LossReason.RENDEZVOUS, StopReason.NODE_LOST, StopReason.VANISHED}
)


@dataclass(frozen=True)
class AttemptEnd:
    """How an attempt ended, other than well."""

    exit_code: int | None = None
    """None: nothing could be read."""
    reason: str = ""
    """The executor's reason, else the stage's."""
    stop: str = ""
    """Why the planner stopped it; empty: it did not."""
    progressed: bool = False
    """It moved the stage's checkpoint."""


@dataclass(frozen=True)
class FailureRule:
    """One row of the table: the first that applies decides."""

    seen: str
    applies: Callable[[AttemptEnd], bool]
    failure_class: FailureClass


RULES: tuple[FailureRule, ...] = (
    FailureRule(
        "never scheduled in time",
        lambda e: e.stop == StopReason.PENDING_DEADLINE,
        FailureClass.PERMANENT,
    ),
    FailureRule(
        "stopped for the cycle's sake",
        lambda e: e.stop in _FOR_THE_CYCLE,
        FailureClass.CHECKPOINTED,
    ),
    FailureRule(
        "the budget is spent",
        lambda e: e.reason == BUDGET_SPENT,
        FailureClass.CHECKPOINTED,
    ),
    FailureRule(
        "checkpoint with progress",
        lambda e: e.exit_code == ExitCode.CHECKPOINTED and e.progressed,
        FailureClass.CHECKPOINTED,
    ),
    FailureRule(
        "ran too long without progress",
        lambda e: e.stop == StopReason.TIMEOUT,
        FailureClass.APPLICATION,
    ),
    FailureRule(
        "bad configuration or data",
        lambda e: e.exit_code in PERMANENT_EXIT_CODES,
        FailureClass.PERMANENT,
    ),
    FailureRule(
        "out of memory, or a sidecar that does not stay up",
        lambda e: e.reason in _APPLICATION_REASONS,
        FailureClass.APPLICATION,
    ),
    FailureRule(
        "evicted, preempted, node lost, or pods that did not find each other",
        lambda e: e.reason in _INFRASTRUCTURE_REASONS,
        FailureClass.INFRASTRUCTURE,
    ),
    FailureRule(
        "ended from outside",
        lambda e: e.exit_code in (ExitCode.CHECKPOINTED, ExitCode.SIGTERM),
        FailureClass.INFRASTRUCTURE,
    ),
    FailureRule(
        "nothing readable",
        lambda e: e.exit_code is None,
        FailureClass.INFRASTRUCTURE,
    ),
    FailureRule(
        "any other failure",
        lambda e: True,
        FailureClass.APPLICATION,
    ),
)


def classify(ending: AttemptEnd) -> FailureClass:
    """The class of an end."""
    return next(row.failure_class for row in RULES if row.applies(ending))


def backoff_seconds(policy: FailurePolicy, losses: int, ran_seconds: float) -> float:
    """Seconds to wait after the `losses`-th loss of a kind: doubling, up to a limit.

    An attempt that ran longer than the limit starts the doubling anew: a preemption a day is no crash loop.
    """
    if ran_seconds >= policy.max_backoff_seconds:
        losses = 1
    doublings = min(max(losses, 1) - 1, 32)  # beyond that any limit is reached, and a float stays a float
    return float(min(policy.backoff_seconds * 2**doublings, policy.max_backoff_seconds))
