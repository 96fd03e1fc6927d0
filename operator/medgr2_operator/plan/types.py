"""What the planner observes and what it plans. Plain data; an executor fills the one and applies the other."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from medgr2_api.stage_contract import Progress, StageRequest, StageResult
from medgr2_api.status import CycleStatus
from medgr2_api.waiting import WaitingReason


# Keys are tuples: the planner looks things up by them all the time, and a dataclass's hash is Python code.
class StageKey(NamedTuple):
    """A stage of an iteration."""

    iteration: int
    name: str

    def __str__(self) -> str:
        return f"{self.name}@{self.iteration}"


class AttemptKey(NamedTuple):
    """The identity of an attempt: nothing with the same identity is ever created twice."""

    iteration: int
    name: str
    token: str
    attempt: int

    @property
    def stage(self) -> StageKey:
        return StageKey(self.iteration, self.name)


class JobState(StrEnum):
    """What an executor observes of a Job (locally: of a stage's processes)."""

    QUEUED = "Queued"
    """Suspended by a queue, or no pod scheduled yet."""
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


@dataclass(frozen=True)
class ObservedJob:
    """One Job of this cycle, as it was when it was read."""

    key: AttemptKey
    name: str
    uid: str
    state: JobState
    deleting: bool = False
    owned: bool = True
    """False: a foreign Job that has the name of one of the cycle's; never adopted, never deleted."""
    exit_code: int | None = None
    reason: str = ""
    """The executor's reason of the failure (`failure_policy.LossReason`); empty: the exit code says it all."""
    message: str = ""
    result: StageResult | None = None
    """The stage's own report; None when nothing could be read."""
    started: datetime | None = None
    """Start of the present run (a queue resets it)."""
    finished: datetime | None = None
    """End of what ran: of the Job, or, where a queue took its quota back, of its last pod; None: not known."""
    waiting: WaitingReason | None = None
    """What it, or one of its pods, waits for; None: for nothing that is known."""
    waiting_message: str = ""
    stuck: str = ""
    """Why it will never end by itself (a sidecar that does not stay up): the planner stops it."""
    lost: str = ""
    """Why nothing more will be heard of it (its node is silent): the planner ends it."""
    left_over: str = ""
    """What is still alive of a Job whose work has ended (a sidecar that somebody injected): the planner deletes it."""
    progress: Progress | None = None


@dataclass(frozen=True)
class ObservedPod:
    """A live pod (locally: a live process) of this cycle. Finished pods are not listed."""

    name: str
    key: AttemptKey
    terminating: bool = False


@dataclass(frozen=True)
class Refusal:
    """The API server did not take an attempt's Job, or what belongs to it."""

    key: AttemptKey
    message: str
    """The server's."""
    final: bool = False
    """The same Job will never be taken."""


@dataclass(frozen=True)
class Observed:
    """The cycle's Jobs and pods as an executor observes them. Level-triggered: only what is, never what happened.

    Read after the cycle, pods after Jobs, none of it from a cache: what is missing counts as vanished.
    """

    jobs: tuple[ObservedJob, ...] = ()
    pods: tuple[ObservedPod, ...] = ()
    workspace_ready: bool = True
    workspace_message: str = ""
    refusals: tuple[Refusal, ...] = ()
    """Of attempts whose Jobs the executor could not create."""


@dataclass(frozen=True)
class JobCreate:
    """Start this attempt."""

    key: AttemptKey
    name: str
    request: StageRequest
    shards: int = 1
    """Parts that run side by side; each gets the same request with its own `shard`."""
    resumes: bool = False
    """It goes on from a checkpoint (a queue may give it the in-flight priority)."""


@dataclass(frozen=True)
class JobDelete:
    """Ask this attempt to stop (SIGTERM, grace, SIGKILL) and forget its Job."""

    key: AttemptKey
    name: str
    uid: str
    reason: str


@dataclass(frozen=True)
class Event:
    """A Kubernetes event (locally: a line of the log)."""

    type: str
    """Normal or Warning."""
    reason: str
    message: str
    stage: StageKey | None = None


@dataclass(frozen=True)
class Plan:
    """What to do now, applied in this order: status, deletes, creates, events.

    With deletes or creates the status is written (with its resourceVersion) even when it is unchanged: a conflict there
    is what makes a plan from an old reading harmless.
    """

    status: CycleStatus
    deletes: tuple[JobDelete, ...] = ()
    creates: tuple[JobCreate, ...] = ()
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None
    """Seconds until the next plan, whatever happens; None: only when something changes."""
