"""What must hold whatever happens in the simulator; `InvariantBroken` is raised as soon as it does not."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from medgr2_api.cycle import Cycle
from medgr2_api.stages import definition
from medgr2_api.stages.definition import Of
from medgr2_api.status import AttemptState, CycleStatus
from medgr2_operator.plan import planner
from medgr2_operator.plan.types import AttemptKey, JobCreate, Observed, Plan, StageKey
from tests.support.planner_objects import ENDED, SimJob, SimPod

TERMINAL = (AttemptState.SUCCEEDED, AttemptState.FAILED, AttemptState.GONE)


class InvariantBroken(AssertionError):
    """An invariant does not hold."""


@dataclass
class History:
    """What was created and stored so far, and what may therefore never happen again."""

    created: dict[AttemptKey, int] = field(default_factory=dict)
    seen: set[AttemptKey] = field(default_factory=set)
    """Attempts whose Job's uid is, or was, in a stored status."""
    ended: dict[AttemptKey, AttemptState] = field(default_factory=dict)
    newest: dict[tuple[StageKey, str], int] = field(default_factory=dict)
    tokens: dict[StageKey, list[str]] = field(default_factory=dict)

    def check_create(self, key: AttemptKey) -> None:
        """Before a Job is created: nobody has seen this attempt's Job yet."""
        if key in self.created and (key in self.seen or key in self.ended):
            raise InvariantBroken(f"created once: {key} was created again")

    def note_create(self, key: AttemptKey) -> None:
        """A Job was created."""
        self.created[key] = self.created.get(key, 0) + 1

    def check_status(self, status: CycleStatus) -> None:
        """A status that is about to be stored: ends are for ever, and attempts and tokens only go forward."""
        for record in status.stages:
            if record.attempt == 0:
                continue
            key = AttemptKey(record.iteration, record.name, record.token, record.attempt)
            state = self.ended.get(key)
            if state is not None and record.state is not state:
                raise InvariantBroken(f"terminal for ever: {key} was {state}, is {record.state}")
            if record.state in TERMINAL:
                self.ended[key] = record.state
            if record.job_uid:
                self.seen.add(key)
            newest = self.newest.get((key.stage, key.token), 0)
            if record.attempt < newest:
                raise InvariantBroken(f"forward: {key} after attempt {newest}")
            self.newest[key.stage, key.token] = record.attempt
            tokens = self.tokens.setdefault(key.stage, [])
            if key.token in tokens[:-1]:
                raise InvariantBroken(f"forward: {key} after token {tokens[-1]}")
            if key.token not in tokens:
                tokens.append(key.token)


def same_again(plan: Plan, cycle: Cycle, observed: Observed, now: datetime) -> None:
    """Planning twice gives the same plan, and leaves its input as it was."""
    before = cycle.status.model_dump_json()
    if planner.plan(cycle, observed, now) != plan:
        raise InvariantBroken("idempotent: the same input gave another plan")
    if cycle.status.model_dump_json() != before:
        raise InvariantBroken("pure: planning changed its input")


def recorded_first(plan: Plan, stored: CycleStatus, observed: Observed) -> None:
    """A result that the planner saw is in the stored status before it deletes the Job that carries it."""
    ended = {job.uid: job.key for job in observed.jobs if job.state in ENDED}
    for delete in plan.deletes:
        key = ended.get(delete.uid)
        for record in stored.stages if key is not None else ():
            if AttemptKey(record.iteration, record.name, record.token, record.attempt) == key:
                raise InvariantBroken(f"recorded first: {key} is deleted, and its result is not stored")


def identity(create: JobCreate) -> None:
    """A Job has a short name, and its request names the attempt that it is."""
    request = create.request
    if len(create.name) > 52 or request.attempt != create.key.attempt or request.token != create.key.token:
        raise InvariantBroken(f"identity: {create}")


def inputs_exist(create: JobCreate, published: Mapping[tuple[str, str], str]) -> None:
    """A Job reads only what was published."""
    request = create.request
    for role, ref in request.inputs.items():
        if published.get((ref.stage, ref.path.rsplit("/", 1)[1])) != ref.output_digest:
            raise InvariantBroken(f"inputs exist: {create.key} reads {role}, which was never published")
    readers = ("generate", "curate", "sft", "grpo", "relabel", "preferences", "reward", "evaluate", "measure")
    if request.stage in readers and "prepare" not in request.inputs:
        raise InvariantBroken(f"inputs exist: {create.key} was started without prepare")


def models_go_on(create: JobCreate, unpromoted: Container[tuple[str, str]]) -> None:
    """A stage that works with a model takes none that its maker found too bad to go on."""
    request = create.request
    for read in definition(request.stage).reads:
        ref = request.inputs.get(read.role) if read.of is Of.NEWEST or read.otherwise else None
        if ref is not None and (ref.stage, ref.path.rsplit("/", 1)[1]) in unpromoted:
            raise InvariantBroken(f"promoted: {create.key} reads {read.role} of {ref.stage}@{ref.iteration}")


def intent_first(create: JobCreate, status: CycleStatus) -> None:
    """The stored status says that this Job is going to be created."""
    intended = any(
        (r.iteration, r.name, r.token, r.attempt, r.job_name)
        == (create.key.iteration, create.key.name, create.key.token, create.key.attempt, create.name)
        and r.state is AttemptState.PENDING
        for r in status.stages
    )
    if not intended:
        raise InvariantBroken(f"intent first: {create.key} is not in the stored status")


def one_live_job(key: AttemptKey, jobs: Iterable[SimJob]) -> None:
    """No other attempt of the stage has a Job that has not ended."""
    for other in jobs:
        if other.key.stage == key.stage and other.state not in ENDED:
            raise InvariantBroken(f"one writer: {key} was created beside the Job of {other.key}")


def one_writer(key: AttemptKey, pods: Iterable[SimPod]) -> None:
    """No other attempt of the stage has a pod."""
    for pod in pods:
        if pod.job.key.stage == key.stage and pod.job.key != key:
            raise InvariantBroken(f"one writer: {key} beside the pod {pod.name} of {pod.job.key}")
