"""The one contract that every stage keeps: read the request, run, publish, leave a result and an exit code.

Run as `python -m medgr2_jobs.runner.main` with the request in `MEDGR2_STAGE_REQUEST`; `forkserver.py` calls `main` in
a forked process. Where a training has several processes, torchrun starts them (`distributed/launch.py`); each calls
`attempt.work`.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
from pathlib import Path

from pydantic import ValidationError

from medgr2_api import paths
from medgr2_api.guarded_streams import guarded
from medgr2_api.stage_contract import (
    INDEX_ENV,
    REQUEST_ENV,
    WORKSPACE_ENV,
    ExitCode,
    Shard,
    StageRequest,
    StageResult,
)
from medgr2_api.stages import stage_names

from ..errors import ConfigError, CorruptArtifact, TemporaryError
from ..store import manifest
from ..store.artifact import ArtifactWriter
from . import publishing, stage_log, visible_gpus
from .attempt import run_guarded, work
from .distributed.launch import launch
from .distributed.rendezvous import Rendezvous
from .ending import write_result
from .metrics_server import serve_metrics
from .process_group import ProcessGroup

_log = logging.getLogger(__name__)
#: What may become part of a path: no separators, no hidden names.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")


def main() -> int:
    """Entry point of a stage's process."""
    stop = threading.Event()
    # From the first moment: a container's first process would not even notice SIGTERM by default.
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    text = os.environ.get(REQUEST_ENV)
    if not text:
        return _refuse(f"{REQUEST_ENV} is not set: a stage is started by the operator or by `medgr2 run`")
    try:
        request = StageRequest.model_validate_json(text)
    except ValidationError as error:
        return _refuse(f"{REQUEST_ENV} is not a stage request: {error}")
    root = Path(os.environ.get(WORKSPACE_ENV, "/workspace"))
    request = _shard_of_pod(request)
    with serve_metrics(request, root):
        code = execute(request, root, stop)
    # Python takes its handlers away before it ends: another SIGTERM then would spoil the exit code.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return code


def _shard_of_pod(request: StageRequest) -> StageRequest:
    """The pods of an Indexed Job share one request; each takes its own part by its index."""
    index = os.environ.get(INDEX_ENV)
    if request.shard.count == 1 or index is None:
        return request
    return request.model_copy(update={"shard": Shard(index=int(index), count=request.shard.count)})


def execute(request: StageRequest, root: Path, stop: threading.Event | None = None) -> int:
    """Runs a stage to its end; leaves its result at `MEDGR2_RESULT_PATH` and returns the exit code.

    Args:
        request: what to do.
        root: the workspace.
        stop: set from outside to ask for a checkpoint.
    """
    stop_event = stop or threading.Event()
    usage: dict[str, float] = {}
    with stage_log.written(request):
        _log.info(
            "attempt %d starts; it publishes to %s",
            request.attempt,
            paths.artifact(request.stage, request.input_hash),
            extra={"fields": {"inputHash": request.input_hash, "token": request.token}},
        )
        result = run_guarded(request, root, lambda: _run(request, root, stop_event, usage), usage)
        write_result(result)
        _log_end(result)
    return result.exit_code


def _log_end(result: StageResult) -> None:
    """How the attempt ended, as its result says it."""
    fields = {"reason": result.reason, "exitCode": result.exit_code, "usage": result.usage}
    if result.exit_code == ExitCode.OK:
        fields |= {"outputDigest": result.output_digest, "metrics": result.metrics}
        _log.info("%s: output digest %s", result.reason, result.output_digest, extra={"fields": fields})
    else:
        level = logging.INFO if result.exit_code == ExitCode.CHECKPOINTED else logging.ERROR
        _log.log(level, "%s: %s", result.reason, result.message, extra={"fields": fields})


def _refuse(message: str) -> int:
    """What was asked cannot be understood."""
    _log.error("%s", message)
    write_result(StageResult(exit_code=ExitCode.USAGE, reason="BadRequest", message=message))
    return ExitCode.USAGE


def _run(request: StageRequest, root: Path, stop: threading.Event, usage: dict[str, float]) -> StageResult:
    """What is published already, or the work, in this process or in several."""
    _check_names(request)
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder; mount the workspace there, or set {WORKSPACE_ENV}")
    folder = root / paths.artifact(request.stage, request.input_hash)
    if request.shard.count > 1:
        folder /= paths.shard(request.shard.index)
    published = manifest.load(folder)
    if published is not None:
        if (published.stage, published.input_hash) != (request.stage, request.input_hash):
            raise CorruptArtifact(f"{folder / paths.MANIFEST}: belongs to another artifact; remove this folder")
        manifest.verify(folder, published)
        ArtifactWriter(root, request).clean(published)
        publishing.link(request, root, folder, published)
        paid = publishing.paid_before(request, root, published)
        return publishing.result(published, reused=not request.collect, paid=paid)
    if request.collect:
        raise TemporaryError(f"{folder}: nothing was published here; the stage has to run again")
    rendezvous = Rendezvous.from_environment()
    if rendezvous.needs_torchrun:
        return launch(request, rendezvous, stop)
    visible_gpus.keep_one(os.environ)
    return work(request, root, stop, ProcessGroup(), usage)


def _check_names(request: StageRequest) -> None:
    """Refuses names that would lead out of their folder: they become parts of paths."""
    if request.stage not in stage_names():
        raise ConfigError(f"this version has no stage {request.stage[:80]!r}: it has {', '.join(stage_names())}")
    names = {"input hash": request.input_hash, "cycle name": request.cycle.name}
    names |= {"cycle uid": request.cycle.uid or "none", "token": request.token or "none"}
    for what, name in names.items():
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{what} {name[:80]!r}: only letters, digits, '.', '_' and '-' may be in it")
    if not 0 <= request.shard.index < request.shard.count:
        raise ConfigError(f"shard {request.shard.index} of {request.shard.count}: there is no such shard")


if __name__ == "__main__":
    with guarded():
        code = main()
    sys.exit(code)
