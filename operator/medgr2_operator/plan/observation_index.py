"""An observation, indexed by what the planner looks up."""

from __future__ import annotations

from collections import defaultdict
from enum import Enum, auto

from medgr2_api.cycle import Cycle
from medgr2_api.status import AttemptState, StageStatus

from .status_draft import attempt_of
from .types import AttemptKey, JobState, Observed, ObservedJob, ObservedPod, Refusal, StageKey

#: Stands for the uid of a Job that was never observed, but whose pod was: it existed.
UNKNOWN_UID = "unknown"
ENDED = frozenset({JobState.SUCCEEDED, JobState.FAILED})


class AttemptSight(Enum):
    """What is observed of an attempt."""

    ABSENT = auto()
    """No Job, no pod."""
    LINGERING = auto()
    """No Job, but a pod that is still alive."""
    QUEUED = auto()
    RUNNING = auto()
    SUCCEEDED = auto()
    FAILED = auto()


_SIGHT = {
    JobState.QUEUED: AttemptSight.QUEUED,
    JobState.RUNNING: AttemptSight.RUNNING,
    JobState.SUCCEEDED: AttemptSight.SUCCEEDED,
    JobState.FAILED: AttemptSight.FAILED,
}


class ObservationIndex:
    """Jobs by attempt, live pods by stage, foreign Jobs by name."""

    def __init__(self, observed: Observed) -> None:
        self.jobs: dict[AttemptKey, ObservedJob] = {job.key: job for job in observed.jobs if job.owned}
        self.foreign_jobs = {job.name for job in observed.jobs if not job.owned}
        self._refusals = {refusal.key: refusal for refusal in observed.refusals}
        self._live: dict[StageKey, list[AttemptKey]] = defaultdict(list)
        self._numbers: dict[tuple[StageKey, str], int] = defaultdict(int)
        self._pods: set[AttemptKey] = {pod.key for pod in observed.pods}
        for job in self.jobs.values():
            self._note(job, live=job.state not in ENDED)
        for pod in observed.pods:
            self._note(pod, live=True)

    def job(self, record: StageStatus) -> ObservedJob | None:
        """The Job of a record's newest attempt. Another uid under its name is another Job."""
        job = self.jobs.get(attempt_of(record))
        return job if job is not None and record.job_uid in ("", UNKNOWN_UID, job.uid) else None

    def sight(self, record: StageStatus) -> AttemptSight:
        """What is observed of a record's newest attempt."""
        job = self.job(record)
        if job is not None:
            return _SIGHT[job.state]
        return AttemptSight.LINGERING if attempt_of(record) in self._pods else AttemptSight.ABSENT

    def refusal(self, record: StageStatus) -> Refusal | None:
        """Why the Job of a record's newest attempt was not created; None: nobody refused it."""
        return self._refusals.get(attempt_of(record))

    def alive(self, stage: StageKey) -> bool:
        """Whether any attempt of a stage, under whatever token, may still write."""
        return bool(self._live.get(stage))

    def alive_stages(self) -> list[StageKey]:
        """Stages of which an attempt may still write."""
        return [stage for stage, live in self._live.items() if live]

    def newest_attempt(self, stage: StageKey, token: str) -> int:
        """The highest attempt number in sight; 0: none. Guards against a status restored from a backup."""
        return self._numbers.get((stage, token), 0)

    def _note(self, seen: ObservedJob | ObservedPod, *, live: bool) -> None:
        key = seen.key
        number = (key.stage, key.token)
        self._numbers[number] = max(self._numbers[number], key.attempt)
        if live:
            self._live[key.stage].append(key)


def oldest_relevant_iteration(cycle: Cycle) -> int:
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
