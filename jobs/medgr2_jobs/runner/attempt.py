"""One attempt at a stage: its code runs in its context, and whatever happens becomes a result."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import random
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from medgr2_api import redaction
from medgr2_api.stage_contract import ExitCode, StageRequest, StageResult
from medgr2_api.stages import definition

from ..errors import Checkpointed, ConfigError, DiskFull, StageError
from ..store import fencing
from . import process_tuning, publishing
from .context import StageContext, StageOutcome
from .process_group import ProcessGroup

_log = logging.getLogger(__name__)


def run_guarded(
    request: StageRequest, root: Path, attempt: Callable[[], StageResult], usage: dict[str, float] | None = None
) -> StageResult:
    """The result of an attempt, whatever happens inside.

    Args:
        request: what the attempt was asked.
        root: the workspace.
        attempt: does the work.
        usage: what the attempt puts its costs into while it goes on: they are told also when it fails.
    """
    result = _result_of(request, root, attempt)
    result = result.model_copy(update={"message": redaction.redact(result.message)})
    if usage and result.exit_code != ExitCode.OK:
        result = result.model_copy(update={"usage": {**result.usage, **usage}})
    return result


def _result_of(request: StageRequest, root: Path, attempt: Callable[[], StageResult]) -> StageResult:
    failed = StageResult(exit_code=ExitCode.ERROR, input_hash=request.input_hash)
    try:
        return attempt()
    except Checkpointed as error:
        return failed.model_copy(
            update={
                "exit_code": error.exit_code,
                "reason": error.reason,
                "message": str(error),
                "checkpoint_step": error.step,
            }
        )
    except StageError as error:
        return failed.model_copy(update={"exit_code": error.exit_code, "reason": error.reason, "message": str(error)})
    except ImportError as error:  # the same image would lack it again
        _log.exception("%s", type(error).__name__)
        message = (
            f"a package is missing, or not of the version that is needed ({error}): install it, or use another image"
        )
        return failed.model_copy(update={"exit_code": ExitCode.CONFIG, "reason": "PackageMissing", "message": message})
    except (Exception, SystemExit) as error:  # a library that calls sys.exit() has not succeeded either
        _log.exception("%s", type(error).__name__)
        if _disk_full(error):
            full = DiskFull(f"the disk is full below {root}; free some space and run the same command again")
            return failed.model_copy(update={"exit_code": full.exit_code, "reason": full.reason, "message": str(full)})
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        return failed.model_copy(update={"reason": type(error).__name__, "message": message})


def work(
    request: StageRequest,
    root: Path,
    stop: threading.Event,
    process_group: ProcessGroup,
    usage: dict[str, float] | None = None,
) -> StageResult:
    """Runs the stage's code and publishes. Of several processes the main one publishes; all return its result."""
    context = build_context(request, root, stop, process_group, usage)
    run: Callable[[StageContext[Any]], StageOutcome] = importlib.import_module(definition(request.stage).code).run
    if process_group.main:
        fencing.raise_fence(root, request)
    _set_up(context.parameters.seed, request.threads)
    wall, cpu = time.monotonic(), _cpu_seconds()
    try:
        if process_group.main:
            context.writer.open()
        process_group.barrier()
        outcome = run(context)
        spent = {"wallSeconds": time.monotonic() - wall, "cpuSeconds": _cpu_seconds() - cpu}
        spent = {name: round(seconds, 3) for name, seconds in spent.items()} | peak_memory()
        return process_group.broadcast(publishing.publish(context, outcome, spent) if process_group.main else None)
    except BaseException:
        if process_group.main and not publishing.is_published(context.writer):
            context.writer.discard()
        raise


def build_context(
    request: StageRequest,
    root: Path,
    stop: threading.Event,
    process_group: ProcessGroup,
    usage: dict[str, float] | None,
) -> StageContext[Any]:
    """What the stage's code is given.

    Raises:
        ConfigError: the parameters or inputs are not those of this version.
    """
    stage = definition(request.stage)
    undeclared = [role for role in request.inputs if not stage.declares(role)]
    missing = stage.missing_inputs(request.inputs, request.iteration)
    if undeclared or missing:
        problems = [
            *(f"{role!r} is missing" for role in missing),
            *(f"{role!r} is not declared" for role in undeclared),
        ]
        where = f"{request.stage}@{request.iteration}"
        raise ConfigError(f"inputs of {where}: {', '.join(problems)}; is the image of another version?")
    try:
        parameters = stage.parameters.model_validate(request.parameters)
    except ValidationError as error:
        raise ConfigError(f"parameters of stage {request.stage}: {error}") from error
    return StageContext(request, parameters, root, stop=stop, process_group=process_group, usage=usage)


def _cpu_seconds() -> float:
    """Processor time of this process and its ended children: unlike wall time, the same on a busy machine."""
    return sum(os.times()[:4])


def peak_memory() -> dict[str, float]:
    """The most memory that this process has held so far, in bytes, and its GPU's, where it has one."""
    peaks = {"peakMemoryBytes": float(_peak_resident())}
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available() and torch.cuda.is_initialized():
            peaks["peakGPUMemoryBytes"] = float(torch.cuda.max_memory_reserved())
    return peaks


def _peak_resident() -> int:
    """Of this process alone: what `getrusage` says counts the forkserver, from which it was forked."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM:")), "VmHWM: 0 kB")
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _set_up(seed: int, threads: int) -> None:
    """Seeds and settings of what is loaded; a stage that never touches torch must not pay for importing it."""
    random.seed(seed)
    if "numpy" in sys.modules:
        import numpy as np

        np.random.seed(seed)
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        if not torch.cuda.is_available():  # there PyTorch's own allocator keeps what steps free, and nobody measured
            process_tuning.keep_freed_memory()


def _disk_full(error: BaseException) -> bool:
    """Whether a full disk is behind the error; libraries wrap it in errors of their own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if os.strerror(errno.ENOSPC) in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
