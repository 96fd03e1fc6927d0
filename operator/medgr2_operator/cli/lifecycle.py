"""`medgr2 suspend`, `resume`, `restart`, `approve`, and the end of `review import`.

Each changes one thing in the spec and says what it did."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from medgr2_api.cycle import Cycle
from medgr2_api.stage_contract import ExitCode
from medgr2_api.stages import CURATE
from medgr2_api.status import AttemptState, Phase

from ..kube.client import CYCLES, ConflictError, Manifest
from ..plan.types import StageKey
from .approval import reach, stages_to_approve, waiting_for_approval
from .connection import Cluster, parsed
from .errors import CommandError, parse_stage

_MAX_CONFLICTS = 20  # with other writers; the operator's status counts as one
_POLL = 0.5  # seconds
_ENDED = (Phase.COMPLETE, Phase.FAILED)
_ACTIVE = (AttemptState.PENDING, AttemptState.RUNNING, AttemptState.TERMINATING)


async def suspend(cluster: Cluster, name: str, wait: float) -> int:
    """Asks running stages to checkpoint and stop. With `wait` seconds: until they have."""
    cycle = await cluster.cycle(name)
    if _phase(cycle) in _ENDED:
        raise CommandError(f"{name} is {_phase(cycle)}: nothing is left to suspend")
    if not cycle["spec"].get("suspend"):
        cycle = await cluster.client.patch(CYCLES, name, cluster.namespace, {"spec": {"suspend": True}})
        print(f"{name}: suspended; running stages write a checkpoint and stop")
    else:
        print(f"{name} was suspended already")
    if wait:
        await _until(cluster, cycle, wait, _stopped)
        print(f"{name}: everything has stopped")
    return ExitCode.OK


async def resume(cluster: Cluster, name: str, wait: float) -> int:
    """Lets a suspended cycle go on. With `wait` seconds: until the operator has seen it."""
    cycle = await cluster.cycle(name)
    if cycle["spec"].get("suspend"):
        cycle = await cluster.client.patch(CYCLES, name, cluster.namespace, {"spec": {"suspend": False}})
        print(f"{name}: resumed")
    else:
        print(f"{name} was not suspended")
    if wait:
        await _until(cluster, cycle, wait, lambda now: _condition(now, "Suspended") == "False")
    return ExitCode.OK


async def restart(cluster: Cluster, name: str, stage: str, wait: float) -> int:
    """Runs a stage, and all that depends on it, again. With `wait` seconds: until the operator has begun."""
    stage_name, iteration = parse_stage(stage)
    if iteration is None:
        raise CommandError(f"{stage!r}: say of which iteration, such as {stage_name}@2")

    def edit(stored: Manifest) -> _Edit:
        return _restarting(parsed(stored), StageKey(iteration, stage_name))

    return await _change(cluster, name, edit, wait)


async def name_review(cluster: Cluster, name: str, iteration: int, sha256: str, restart: bool, wait: float) -> int:
    """Names an expert's review in the spec and with `restart` runs curate again, both in one patch.

    With `wait` seconds: until the operator has begun.
    """

    def edit(stored: Manifest) -> _Edit:
        others = [review for review in stored["spec"].get("reviews") or [] if review["iteration"] != iteration]
        value = sorted(
            [*others, {"iteration": iteration, "sha256": sha256}], key=lambda review: int(review["iteration"])
        )
        named = {"op": "add", "path": "/spec/reviews", "value": value}
        if not restart:
            command = cluster.typed("restart", name, f"curate@{iteration}")
            summary = f"{name}: spec.reviews names it; `{command}` lets it count"
            return _Edit([named], summary, lambda now: True)
        again = _restarting(parsed(stored), StageKey(iteration, CURATE.name))
        return _Edit([named, *again.operations], again.summary, again.done)

    return await _change(cluster, name, edit, wait)


def _restarting(cycle: Cycle, start: StageKey) -> _Edit:
    stages, token = reach(cycle, start), _fresh_token(cycle)
    value = {"iteration": start.iteration, "stage": str(start.name), "token": token}
    return _Edit(
        [{"op": "add", "path": "/spec/restartFrom", "value": value}],
        f"{cycle.metadata.name}: {start} and what depends on it run again, {stages} stages in all (token {token})",
        lambda now: token in now.get("status", {}).get("restartTokens", ()),
    )


async def approve(cluster: Cluster, name: str, stage: str, wait: float) -> int:
    """Lets what waits for approval go on: a stage, or all that wait. With `wait` seconds: until they no longer do."""

    def edit(stored: Manifest) -> _Edit:
        chosen = stages_to_approve(parsed(stored), stage)
        given = stored["spec"].get("approved") or []
        new = [ref for key in chosen if (ref := {"iteration": key.iteration, "stage": str(key.name)}) not in given]
        names = ", ".join(map(str, chosen))
        return _Edit(
            [{"op": "add", "path": "/spec/approved", "value": [*given, *new]}] if new else [],
            f"{name}: {names} may go on" if new else f"{name}: {names} was approved already",
            lambda now: not set(chosen) & set(waiting_for_approval(parsed(now))),
        )

    return await _change(cluster, name, edit, wait)


@dataclass(frozen=True)
class _Edit:
    """A change of the spec that depends on what was read."""

    operations: list[Manifest]
    """RFC 6902; none: nothing is to be changed."""
    summary: str
    done: Callable[[Manifest], bool]
    """Whether the operator has acted on it."""


async def _change(cluster: Cluster, name: str, edit: Callable[[Manifest], _Edit], wait: float) -> int:
    """Reads, changes exactly what was read, and begins again when somebody else was faster: no edit is lost."""
    for _ in range(_MAX_CONFLICTS):
        stored = await cluster.cycle(name)
        change = edit(stored)
        if change.operations:
            version = stored["metadata"]["resourceVersion"]
            unchanged = {"op": "replace", "path": "/metadata/resourceVersion", "value": version}
            try:
                operations = [unchanged, *change.operations]
                stored = await cluster.client.json_patch(CYCLES, name, cluster.namespace, operations)
            except ConflictError:
                continue
        print(change.summary)
        if wait:
            await _until(cluster, stored, wait, change.done)
        return ExitCode.OK
    raise CommandError(f"{name} was changed by others {_MAX_CONFLICTS} times in a row; try again", ExitCode.TEMPORARY)


def _fresh_token(cycle: Cycle) -> str:
    """A token that is new to the cycle; the operator ignores the others."""
    now = cycle.spec.restart_from
    used = {*cycle.status.restart_tokens, *([now.token] if now else ())}
    return next(token for number in range(1, len(used) + 2) if (token := f"r{number}") not in used)


# -- waiting -----------------------------------------------------------------------------------------------------------


async def _until(cluster: Cluster, changed: Manifest, seconds: float, done: Callable[[Manifest], bool]) -> None:
    """Waits until the operator has seen the change and `done` holds.

    Raises:
        CommandError: not in time.
    """
    name, generation = changed["metadata"]["name"], changed["metadata"]["generation"]
    deadline = time.monotonic() + seconds
    while True:
        now = await cluster.cycle(name)
        seen = now.get("status", {}).get("observedGeneration", 0) >= generation
        if seen and done(now):
            return
        if time.monotonic() > deadline:
            why = _summary(now) if seen else "the operator has not reconciled it; is it running?"
            raise CommandError(f"{name}: not within {seconds:.0f} s: {why}", ExitCode.TEMPORARY)
        await asyncio.sleep(_POLL)


def _phase(cycle: Manifest) -> str:
    return str(cycle.get("status", {}).get("phase", ""))


def _conditions(cycle: Manifest) -> list[Manifest]:
    return list(cycle.get("status", {}).get("conditions") or ())


def _condition(cycle: Manifest, kind: str) -> str:
    """Its status; empty: there is none, or it is about an older spec."""
    generation = cycle["metadata"]["generation"]
    condition = next((c for c in _conditions(cycle) if c["type"] == kind), {})
    return str(condition.get("status", "")) if condition.get("observedGeneration", 0) >= generation else ""


def _stopped(cycle: Manifest) -> bool:
    """Whether the suspension has come to its end: no stage runs any more, or the cycle ended meanwhile."""
    stages = cycle.get("status", {}).get("stages") or ()
    at_work = any(stage.get("attempt") and stage.get("state") in _ACTIVE for stage in stages)
    return _phase(cycle) in _ENDED or (_condition(cycle, "Suspended") == "True" and not at_work)


def _summary(cycle: Manifest) -> str:
    progressing = next((c for c in _conditions(cycle) if c["type"] == "Progressing"), {})
    return str(progressing.get("message") or cycle.get("status", {}).get("summary", ""))
