"""The log of a stage: one logger for all of its code (`logging.getLogger(__name__)`), one formatter, on stderr.

In a cluster every line is a JSON object, so that a collector can search by cycle, stage and attempt; elsewhere it is a
line of text. A record's `extra={"fields": {…}}` become members of the object. Secrets are taken out either way.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from medgr2_api import printable, redaction
from medgr2_api.stage_contract import StageRequest

#: Kubernetes sets it in every container.
IN_CLUSTER_ENV = "KUBERNETES_SERVICE_HOST"
INTERVAL = 30.0
"""Seconds between two lines about the progress of one phase."""

_ours = logging.getLogger("medgr2_jobs")


@contextmanager
def written(request: StageRequest) -> Iterator[None]:
    """Writes what this process logs for a stage while the block runs: what our code says from INFO on, libraries from
    WARNING on."""
    handler = _Handler()
    handler.setFormatter(JSONFormatter(request) if os.environ.get(IN_CLUSTER_ENV) else TextFormatter(request))
    root, level = logging.getLogger(), _ours.level
    root.addHandler(handler)
    _ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        _ours.setLevel(level)
        root.removeHandler(handler)


class _Handler(logging.Handler):
    """Writes to what stderr is when something is logged: a forked process has another."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


class JSONFormatter(logging.Formatter):
    """A line of JSON: when, how grave, of which attempt, what, and the record's own fields."""

    def __init__(self, request: StageRequest) -> None:
        super().__init__()
        self._of = {
            "cycle": request.cycle.name,
            "namespace": request.cycle.namespace,
            "stage": request.stage,
            "iteration": request.iteration,
            "attempt": request.attempt,
            "shard": request.shard.index,
        }

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": _time(record).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            **self._of,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(_finite(redaction.redact_values(entry)), default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    """The value with what JSON has no number for, a loss that diverged, as text: a collector refuses the whole line."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class TextFormatter(logging.Formatter):
    """A line of text, and a traceback below it."""

    def __init__(self, request: StageRequest) -> None:
        super().__init__()
        shard = f"#{request.shard.index}" if request.shard.count > 1 else ""
        self._where = f"{request.stage}@{request.iteration}{shard}"

    def format(self, record: logging.LogRecord) -> str:
        message = printable.one_line(record.getMessage())  # what a model wrote must not look like another line
        text = f"{_time(record):%Y-%m-%dT%H:%M:%SZ} {record.levelname} {self._where}: {message}"
        if record.exc_info:
            text += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
        return printable.shown(redaction.redact(text))


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)
