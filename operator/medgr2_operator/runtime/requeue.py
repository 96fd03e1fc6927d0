"""When a cycle is looked at again, should no event call for it earlier."""

from __future__ import annotations

from datetime import datetime

from medgr2_api.status import AttemptState, StageStatus

from ..plan.status_draft import seconds_between

#: Seconds with a stage that waits: what pods and queues say about the cause raises no event that is watched. Sooner at
#: first, when most causes show: after as long as it has waited.
PENDING, PENDING_FIRST = 20.0, 3.0
#: Seconds with a stage that terminates: once its Job is gone, no event tells of its pods.
TERMINATING = 5.0
#: Seconds with a running stage.
RUNNING = 60.0


def by_stage(stage: StageStatus, now: datetime) -> float | None:
    """Seconds until a stage is looked at again; None: no attempt of it is unfinished."""
    if not stage.attempt:
        return None
    if stage.state is AttemptState.PENDING:
        return min(PENDING, max(PENDING_FIRST, seconds_between(stage.pending_since, now)))
    return {AttemptState.TERMINATING: TERMINATING, AttemptState.RUNNING: RUNNING}.get(stage.state)


def earliest(*waits: float | None) -> float | None:
    """The first of these moments; None: there is none."""
    return min((wait for wait in waits if wait is not None), default=None)
