"""What the simulated API server holds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from medgr2_api.stage_contract import StageRequest, StageResult
from medgr2_operator.plan.types import AttemptKey, JobState

ENDED = (JobState.SUCCEEDED, JobState.FAILED)


@dataclass
class SimJob:
    """A Job as the API server holds it."""

    key: AttemptKey
    name: str
    uid: str
    request: StageRequest
    state: JobState = JobState.QUEUED
    deleting: bool = False
    exit_code: int | None = None
    reason: str = ""
    result: StageResult | None = None
    started: datetime | None = None
    finished: datetime | None = None
    step: int = 0


@dataclass
class SimPod:
    """A pod that is alive."""

    name: str
    job: SimJob
    terminating: bool = False
