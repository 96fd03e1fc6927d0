"""Which attempts of a cycle's stages a command is about, wherever the cycle is."""

from __future__ import annotations

from typing import Any

from medgr2_api.status import AttemptState, StageStatus

from ..plan.types import AttemptKey
from .errors import CommandError, parse_stage

_ACTIVE = (AttemptState.PENDING, AttemptState.RUNNING, AttemptState.TERMINATING)


def choose_attempts(cycle: dict[str, Any], stage: str, attempt: int = 0) -> list[AttemptKey]:
    """The attempts whose log is asked for.

    Raises:
        CommandError: nothing has run that fits.
    """
    name = cycle["metadata"]["name"]
    ran = [record for record in records(cycle) if record.attempt]
    if not ran:
        raise CommandError(f"{name}: no stage has run yet")
    if not stage:
        running = [record for record in ran if record.state in _ACTIVE]
        fitting = running or [max(ran, key=lambda record: (str(record.completion_time or ""), record.iteration))]
    else:
        stage_name, iteration = parse_stage(stage)
        of_stage = [record for record in ran if record.name == stage_name]
        newest = max((record.iteration for record in of_stage), default=None)
        fitting = [record for record in of_stage if record.iteration == (newest if iteration is None else iteration)]
        if not fitting:
            there = ", ".join(f"{record.name}@{record.iteration}" for record in ran)
            raise CommandError(f"{name}: {stage} has not run; there is {there}")
    for record in fitting:
        if attempt > record.attempt:
            raise CommandError(f"{name}: {record.name}@{record.iteration} has had {record.attempt} attempts so far")
    return [AttemptKey(r.iteration, r.name, r.token, attempt or r.attempt) for r in fitting]


def records(cycle: dict[str, Any]) -> list[StageStatus]:
    """Stages of the status; of an old iteration only what is left of them."""
    known = set(StageStatus.model_fields) | {field.alias for field in StageStatus.model_fields.values()}
    stages = cycle.get("status", {}).get("stages") or ()
    return [StageStatus.model_validate({k: v for k, v in stage.items() if k in known}) for stage in stages]
