"""The working copy of a status, which the planner reads and changes while it makes a plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from medgr2_api.status import AttemptState, CycleStatus, MetricScore, StageStatus, Usage

from .types import AttemptKey, Event, StageKey

ACTIVE = frozenset({AttemptState.PENDING, AttemptState.RUNNING, AttemptState.TERMINATING})
MESSAGE_LENGTH = 512


def stage_of(record: StageStatus) -> StageKey:
    """Which stage a record is about."""
    return StageKey(record.iteration, record.name)


def attempt_of(record: StageStatus) -> AttemptKey:
    """The newest attempt of a record."""
    return AttemptKey(record.iteration, record.name, record.token, record.attempt)


def seconds_between(start: datetime | None, end: datetime) -> float:
    """Time passed; never negative, however the clock was set."""
    return max(0.0, (end - start).total_seconds()) if start is not None else 0.0


@dataclass
class StatusDraft:
    """Records by stage, usage, scores and events. Records are replaced, never changed in place."""

    before: dict[StageKey, StageStatus]
    """As stored: what a crash cannot take back."""
    now: datetime
    records: dict[StageKey, StageStatus]
    usage: Usage
    scores: tuple[MetricScore, ...]
    specs: list[str] = field(default_factory=list)
    """`status.specs`."""
    events: list[Event] = field(default_factory=list)
    wake: float | None = None
    """Seconds until the earliest moment at which time alone changes the plan."""

    @classmethod
    def open(cls, status: CycleStatus, now: datetime) -> StatusDraft:
        """A working copy of `status`."""
        stored = {stage_of(record): record for record in status.stages}
        begun = any(record.attempt for record in status.stages)
        # what a version began that recorded no specs was made with an unknown one
        specs = list(status.specs) or ([""] if begun else [])
        return cls(stored, now, dict(stored), status.usage, tuple(status.scores), specs)

    def spec_of(self, record: StageStatus) -> str:
        """The spec that a stage was made with, as it was written; empty: not known."""
        return self.specs[record.spec] if record.spec < len(self.specs) else ""

    def number_of(self, spec: str) -> int:
        """The number of a spec among `specs`."""
        if spec not in self.specs:
            self.specs.append(spec)
        return self.specs.index(spec)

    def get(self, key: StageKey) -> StageStatus | None:
        """The record of a stage; None: nothing happened to it yet."""
        return self.records.get(key)

    def promoted(self, key: StageKey) -> bool:
        """Whether a finished stage did not find its own model too bad to go on."""
        return self.records[key].promoted is not False

    def put(self, record: StageStatus) -> None:
        """Replaces a stage's record."""
        self.records[stage_of(record)] = record

    def change(self, key: StageKey, **changes: Any) -> StageStatus:
        """Replaces some fields of a stage's record."""
        record = self.records[key]
        if any(getattr(record, name) != value for name, value in changes.items()):
            record = self.records[key] = record.model_copy(update=changes)
        return record

    def count(self, **amounts: float) -> None:
        """Adds to the usage."""
        added = {name: getattr(self.usage, name) + amount for name, amount in amounts.items() if amount}
        if added:
            self.usage = self.usage.model_copy(update=added)

    def active(self) -> Iterator[StageStatus]:
        """Records whose newest attempt has not ended."""
        return (record for record in list(self.records.values()) if record.attempt and record.state in ACTIVE)

    def done(self, key: StageKey) -> bool:
        """Whether a stage has finished."""
        record = self.records.get(key)
        return record is not None and record.state is AttemptState.SUCCEEDED

    def stored(self, key: StageKey) -> bool:
        """Whether the stage's newest attempt and its end are in the stored status already."""
        before, record = self.before.get(key), self.records[key]
        return before is record or (
            before is not None and attempt_of(before) == attempt_of(record) and before.state is record.state
        )

    def event(self, reason: str, message: str, stage: StageKey | None = None, *, warning: bool = False) -> None:
        """Reports a transition."""
        self.events.append(Event("Warning" if warning else "Normal", reason, message, stage))

    def wake_in(self, seconds: float) -> None:
        """Asks to be called again after `seconds`, at the latest."""
        seconds = max(0.0, seconds)
        self.wake = seconds if self.wake is None else min(self.wake, seconds)

    def end_run(self, key: StageKey, end: datetime | None = None) -> float:
        """Books the time of a run that is over; returns the attempt's seconds.

        A queue resets a Job's start time, so the planner keeps its own account.
        """
        record = self.records[key]
        if record.running_since is None:
            return record.attempt_seconds
        ran = seconds_between(record.running_since, end or self.now)
        self.count(gpu_seconds=record.gpus * ran)
        record = self.change(
            key,
            running_since=None,
            run_seconds=record.run_seconds + ran,
            attempt_seconds=record.attempt_seconds + ran,
        )
        return record.attempt_seconds

    def within(self, record: StageStatus, moment: datetime | None) -> datetime:
        """A moment by a node's clock, which may be wrong: not before what came before it, not after now; None: now."""
        before = record.running_since or record.pending_since
        moment = min(moment or self.now, self.now)
        return max(moment, before) if before is not None and before <= self.now else moment

    def after(self, seconds: float) -> datetime:
        """The moment `seconds` from now."""
        return self.now + timedelta(seconds=seconds)


def cut(text: str, length: int = MESSAGE_LENGTH) -> str:
    """Text that fits into the status."""
    return text if len(text) <= length else text[: length - 1] + "…"
