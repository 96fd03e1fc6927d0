"""Which stages may start now, and the request that each is started with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from medgr2_api import paths
from medgr2_api.cycle import Cycle
from medgr2_api.stage_contract import ArtifactRef, CycleRef, StageRequest
from medgr2_api.stages import definition, input_hash
from medgr2_api.status import AttemptState, StageStatus
from medgr2_api.waiting import WaitingReason

from .graph import Graph, Node
from .observation_index import ObservationIndex
from .spec_cache import CachedSpec
from .status_draft import ACTIVE, StatusDraft, stage_of
from .types import AttemptKey, JobCreate, StageKey
from .waits import NOT_WAITING

#: 63 for a pod's host name, less `-<index>` of an Indexed Job and the five random characters of a pod.
JOB_NAME_LENGTH = 52


@dataclass
class Starts:
    """What is started, and what is held back by a pause, a foreign Job or a backoff."""

    creates: list[JobCreate] = field(default_factory=list)
    paused: list[StageKey] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    backing_off: list[StageKey] = field(default_factory=list)


def start(cycle: Cycle, cached: CachedSpec, graph: Graph, draft: StatusDraft, index: ObservationIndex) -> Starts:
    """Starts every stage that is ready, in the graph's order, up to `maxParallelStages`.

    The intent (attempt number, name, state Pending) goes into the status of the same plan. An intent whose Job was
    never seen is carried out again under the same identity.
    """
    starts = Starts()
    free = cycle.spec.max_parallel_stages - sum(1 for _ in draft.active())
    for node in graph:
        key, record = node.key, draft.get(node.key)
        if not _lacks_attempt(record) or not all(draft.done(need) for need in node.needs):
            continue
        if record is not None and record.state is AttemptState.AWAITING_APPROVAL:
            starts.paused.append(key)
        elif (wait := _backoff_left(cycle, draft, record)) > 0:
            draft.wake_in(wait)
            starts.backing_off.append(key)
        elif (free <= 0 and not _intended(record)) or index.alive(key) or _spends_elsewhere(cycle, key, index):
            continue  # the end of a stage, or of a pod, wakes the planner
        elif record is not None and not draft.stored(key):
            draft.wake_in(0)  # first store how the last attempt ended
        else:
            free -= not _intended(record)
            _attempt(cycle, cached, node, draft, index, starts)
    return starts


def _lacks_attempt(record: StageStatus | None) -> bool:
    """Whether the stage has neither finished nor failed for good, and nothing works on it."""
    if record is None or record.attempt == 0 or _intended(record):
        return True
    return record.state not in ACTIVE and record.state is not AttemptState.SUCCEEDED and not record.given_up


def _spends_elsewhere(cycle: Cycle, key: StageKey, index: ObservationIndex) -> bool:
    """Whether a pod of another iteration may still pay from the budget: what it leaves is known when it has ended."""
    return (
        definition(key.name).pays
        and cycle.spec.budget.generator_usd is not None
        and any(definition(alive.name).pays and alive != key for alive in index.alive_stages())
    )


def _intended(record: StageStatus | None) -> bool:
    """Whether an attempt is in the status whose Job was never seen."""
    return record is not None and record.attempt > 0 and record.state is AttemptState.PENDING and not record.job_uid


def _backoff_left(cycle: Cycle, draft: StatusDraft, record: StageStatus | None) -> float:
    if record is None or record.retry_after is None:
        return 0.0
    left = (record.retry_after - draft.now).total_seconds()
    longest = cycle.spec.failure_policy.max_backoff_seconds
    return left if left <= longest else 0.0  # longer than any backoff: the clock was set back


def _attempt(
    cycle: Cycle, cached: CachedSpec, node: Node, draft: StatusDraft, index: ObservationIndex, starts: Starts
) -> None:
    """Writes the intent and plans the creation."""
    key = node.key
    record = draft.get(key) or StageStatus(iteration=key.iteration, name=key.name)
    attempt = AttemptKey(key.iteration, key.name, record.token, _number(record, index))
    name = job_name(cycle.metadata.name, cycle.metadata.uid, attempt)
    if name in index.foreign_jobs:
        starts.conflicts.append(name)
        return

    settings = cycle.spec.stage(key.name)
    budget = cycle.spec.budget.generator_usd if definition(key.name).pays else None
    inputs = input_refs(node, draft)
    digests = {role: ref.output_digest for role, ref in inputs.items()}
    parameters = cached.parameters(key.name, key.iteration)
    # A collecting attempt looks where the successful one published, whatever the spec says by now. Work that was begun
    # goes on where it lies while the user asks for the same, though another version might file it elsewhere.
    begun = record.input_hash if record.collect or record.asked == cached.asked else ""
    publishes = begun or input_hash(key.name, parameters, digests, record.token)
    same = publishes == record.input_hash
    request = StageRequest.model_construct(
        cycle=CycleRef.model_construct(
            name=cycle.metadata.name, namespace=cycle.metadata.namespace, uid=cycle.metadata.uid
        ),
        iteration=key.iteration,
        stage=key.name,
        token=record.token,
        attempt=attempt.attempt,
        input_hash=publishes,
        parameters=parameters.dump(),
        inputs=inputs,
        generator_budget_usd=budget,
        grace_seconds=cycle.spec.template.termination_grace_period_seconds,
        checkpoint_seconds=cycle.spec.failure_policy.checkpoint_seconds,
        stall_seconds=cycle.spec.failure_policy.stall_seconds,
        tracking=cycle.spec.tracking if definition(key.name).trains else None,
        collect=record.collect,
    )
    resumes = same and not record.collect and (record.run_seconds > 0 or record.checkpoint_step >= 0)
    starts.creates.append(JobCreate(attempt, name, request, settings.shards, resumes))
    draft.put(
        record.model_copy(
            update={
                "state": AttemptState.PENDING,
                "attempt": attempt.attempt,
                "job_name": name,
                "job_uid": "",
                "input_hash": publishes,
                "asked": record.asked if record.collect else cached.asked,
                "spec": record.spec if record.collect else draft.number_of(cached.written),
                "gpus": 0 if record.collect else settings.gpus(cycle.spec.budget) * settings.shards,
                "checkpoint_step": record.checkpoint_step if same else -1,
                "attempt_seconds": 0.0,
                "generator_budget_usd": budget,
                "start_time": None,
                "completion_time": None,
                "retry_after": None,
                **({} if _intended(record) else _begins_to_wait(draft.now)),
            }
        )
    )


def _begins_to_wait(now: datetime) -> dict[str, Any]:
    return {
        **NOT_WAITING,
        "pending_since": now,
        "counting_since": now,
        "reason": str(WaitingReason.STARTING),
        "message": "",
    }


def _number(record: StageStatus, index: ObservationIndex) -> int:
    """The attempt to make: the intended one, else one that never was."""
    if _intended(record):
        return record.attempt
    return max(record.attempt, index.newest_attempt(stage_of(record), record.token)) + 1


def input_refs(node: Node, draft: StatusDraft) -> dict[str, ArtifactRef]:
    """The artifacts that the stage reads, by role."""
    chosen = {item.role: source for item in node.inputs if (source := item.chosen(draft.promoted)) is not None}
    return {
        role: ArtifactRef.model_construct(
            stage=source.name,
            iteration=source.iteration,
            path=str(paths.artifact(source.name, draft.records[source].input_hash)),
            output_digest=draft.records[source].output_digest,
        )
        for role, source in chosen.items()
    }


def job_name(cycle: str, uid: str, key: AttemptKey) -> str:
    """`<cycle, shortened>-i002-grpo-a1-<8 hex>`: an RFC 1035 label of at most 52 characters."""
    identity = "/".join((uid, str(key.iteration), key.name, key.token, str(key.attempt)))
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    tail = f"-i{key.iteration:03d}-{key.name}-a{key.attempt}-{digest}"
    return cycle[: JOB_NAME_LENGTH - len(tail)].rstrip("-") + tail
