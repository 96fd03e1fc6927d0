"""Which stages `medgr2 approve` and `restart` mean, wherever the cycle is."""

from __future__ import annotations

from medgr2_api.cycle import Cycle
from medgr2_api.status import AttemptState

from ..plan.spec_cache import cached_spec
from ..plan.types import StageKey
from .errors import CommandError, parse_stage


def reach(cycle: Cycle, start: StageKey) -> int:
    """How many stages would run again.

    Raises:
        CommandError: the cycle has no such stage.
    """
    name = cycle.metadata.name
    if start.iteration > cycle.spec.iterations:
        raise CommandError(f"{start}: {name} has {cycle.spec.iterations} iterations")
    graph = cached_spec(name, cycle.spec).graph(cycle.spec.iterations)
    if start not in graph:
        there = ", ".join(str(node.key) for node in graph if node.key.iteration == start.iteration)
        raise CommandError(f"{name} has no stage {start}; of iteration {start.iteration} it has {there}")
    return len(graph.reach(start))


def stages_to_approve(cycle: Cycle, stage: str) -> list[StageKey]:
    """Which stages are meant.

    Raises:
        CommandError: none, or one that never waits.
    """
    name, waiting = cycle.metadata.name, waiting_for_approval(cycle)
    if not stage:
        if not waiting:
            raise CommandError(f"{name}: nothing waits for approval")
        return waiting
    stage_name, iteration = parse_stage(stage)
    if stage_name not in cycle.spec.pause_before:
        before = ", ".join(cycle.spec.pause_before) or "nothing"
        raise CommandError(f"{name} does not wait before {stage_name}: spec.pauseBefore has {before}")
    if iteration is not None:
        reach(cycle, StageKey(iteration, stage_name))
        return [StageKey(iteration, stage_name)]
    chosen = [key for key in waiting if key.name == stage_name]
    if not chosen:
        raise CommandError(
            f"{name}: no {stage_name} waits for approval now; to approve it beforehand say {stage_name}@N"
        )
    return chosen


def waiting_for_approval(cycle: Cycle) -> list[StageKey]:
    """What the planner says waits for approval."""
    return sorted(
        StageKey(stage.iteration, stage.name)
        for stage in cycle.status.stages
        if stage.state is AttemptState.AWAITING_APPROVAL
    )
