"""How far back a look has to read: the Jobs and pods of long ago would be most of what a long cycle has."""

from __future__ import annotations

from medgr2_api.cycle import Cycle
from medgr2_api.status import AttemptState


def oldest_iteration(cycle: Cycle) -> int:
    """The oldest iteration whose Jobs and pods the planner has to see.

    Every stage before it has succeeded, and so it has nothing that is alive; two iterations are kept in sight
    besides, for Jobs of earlier attempts that are still to be deleted. A restart may open any iteration again.
    """
    status, wish = cycle.status, cycle.spec.restart_from
    if wish is not None and wish.token not in status.restart_tokens:
        return 0
    newest = max((record.iteration for record in status.stages if record.attempt), default=0)
    unfinished = (record.iteration for record in status.stages if record.state is not AttemptState.SUCCEEDED)
    return max(0, min((newest - 1, *unfinished)))
