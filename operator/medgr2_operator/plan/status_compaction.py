"""Keeps a status below 80 KiB: what is finished and old is shortened."""

from __future__ import annotations

import json
from collections.abc import Callable

from medgr2_api.stages import stage_names
from medgr2_api.status import AttemptState, CycleStatus, StageStatus

from .status_draft import cut

#: API server and etcd take more, but every write carries the whole status, and every watcher receives it.
LIMIT_BYTES = 80 * 1024
_TARGET_BYTES = LIMIT_BYTES - 4 * 1024
_KEPT = ("iteration", "name", "state", "token", "attempt", "input_hash", "output_digest", "promoted", "spec")
#: More than a full record takes, less its texts (at most six bytes a character, where JSON is kept in ASCII).
_RECORD_BYTES = 1200
_ESCAPED = 6
_SCORE_BYTES = 140
_REST_BYTES = 4096
_SPECS_BYTES = 8192


def size(status: CycleStatus) -> int:
    """Bytes of the status as JSON."""
    return len(json.dumps(status.dump(), separators=(",", ":")))


def compact(status: CycleStatus) -> CycleStatus:
    """The status with its records in reading order, shortened as far as it takes; older iterations always are."""
    order = {name: number for number, name in enumerate(stage_names())}
    status = _with_fewer_specs(status)
    ordered = sorted(status.stages, key=lambda record: (record.iteration, order[record.name]))
    newest = max((record.iteration for record in ordered if record.attempt), default=0)
    ordered = [_short(record) if record.iteration < newest - 1 else record for record in ordered]
    rest = _REST_BYTES + sum(_ESCAPED * len(condition.message) for condition in status.conditions)
    rest += sum(len(json.dumps(spec)) for spec in status.specs)
    rest += sum(len(token) + 3 for token in status.restart_tokens) + _SCORE_BYTES * len(status.scores)
    for shorten in _STEPS:
        if _fits(ordered, rest):
            break
        ordered = [shorten(record) for record in ordered]
    return status.model_copy(update={"stages": ordered})


def _with_fewer_specs(status: CycleStatus) -> CycleStatus:
    """Of the specs only those that a stage was made with, in their order, and of these the newest that fit."""
    used = sorted({record.spec for record in status.stages if record.attempt and record.spec < len(status.specs)})
    if used == list(range(len(status.specs))) and sum(map(len, status.specs)) <= _SPECS_BYTES:
        return status
    texts, left = dict[int, str](), _SPECS_BYTES
    for number in reversed(used):
        left -= len(status.specs[number])
        texts[number] = status.specs[number] if left >= 0 else ""
    specs = list(dict.fromkeys(texts[number] for number in used))
    moved = {number: specs.index(texts[number]) for number in used}
    stages = [record.model_copy(update={"spec": moved.get(record.spec, 0)}) for record in status.stages]
    return status.model_copy(update={"stages": stages, "specs": specs})


def _short(record: StageStatus) -> StageStatus:
    """Of a finished stage only what others need of it, and what its Job is recognised by."""
    if record.state is not AttemptState.SUCCEEDED or not (record.job_name or record.completion_time):
        return record
    return StageStatus.model_construct(**{name: getattr(record, name) for name in _KEPT})


def _terse(record: StageStatus) -> StageStatus:
    if len(record.message) <= 64 and (record.progress is None or not record.progress.metrics):
        return record
    progress = record.progress.model_copy(update={"metrics": {}}) if record.progress is not None else None
    return record.model_copy(update={"message": cut(record.message, 64), "progress": progress})


_STEPS: tuple[Callable[[StageStatus], StageStatus], ...] = (_terse, _short)


def _fits(records: list[StageStatus], rest_bytes: int) -> bool:
    """Measures only when a cheap upper bound does not settle it."""
    bound = sum(_RECORD_BYTES + _ESCAPED * len(record.message) for record in records)
    if bound + rest_bytes < _TARGET_BYTES:
        return True
    exact = sum(len(json.dumps(record.dump(), separators=(",", ":"))) + 1 for record in records)
    return exact + rest_bytes < _TARGET_BYTES
