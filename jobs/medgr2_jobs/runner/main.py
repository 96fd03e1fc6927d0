"""The one contract that every stage keeps: read the request, run, publish, leave a result and an exit code.

Run as `python -m medgr2_jobs.runner.main` with the request in `MEDGR2_STAGE_REQUEST`; `forkserver.py` calls `main` in
a forked process. Where a training has several processes, torchrun starts them (`distributed/launch.py`); each calls
`work`.
"""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from medgr2_api import paths
from medgr2_api.parameters import CODE_VERSION, parameters_model
from medgr2_api.stage_contract import (
    INDEX_ENV,
    REQUEST_ENV,
    RESULT_PATH_ENV,
    WORKSPACE_ENV,
    ExitCode,
    Shard,
    StageName,
    StageRequest,
    StageResult,
)

from ..errors import Checkpointed, ConfigError, CorruptArtifact, DiskFull, StageError, TemporaryError
from ..store import atomic, fencing, manifest
from ..store.artifact import ArtifactWriter
from . import process_tuning
from .context import Outcome, StageContext
from .distributed.launch import launch
from .distributed.process_group import Ranks
from .distributed.rendezvous import World
from .metrics_server import served

#: Each module has `run(ctx: StageContext) -> Outcome`; imported only when its stage runs.
MODULES: dict[StageName, str] = {
    StageName.PREPARE: "medgr2_jobs.stages.prepare",
    StageName.GENERATE: "medgr2_jobs.stages.generate",
    StageName.SCORE: "medgr2_jobs.stages.score",
    StageName.CURATE: "medgr2_jobs.stages.curate",
    StageName.SFT: "medgr2_jobs.stages.sft",
    StageName.GRPO: "medgr2_jobs.stages.grpo",
    StageName.PREFERENCES: "medgr2_jobs.stages.preferences",
    StageName.REWARD: "medgr2_jobs.stages.reward",
    StageName.EVALUATE: "medgr2_jobs.stages.evaluate",
    StageName.REPORT: "medgr2_jobs.stages.report",
}

#: What may become part of a path: no separators, no hidden names.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")

_PACKAGES = ("medgr2", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "pyarrow", "pillow", "numpy")


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
    with served(request, root):
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
    told = stop or threading.Event()
    usage: dict[str, float] = {}
    result = guarded(request, root, lambda: _run(request, root, told, usage), usage)
    _leave(result)
    if result.exit_code not in (ExitCode.OK, ExitCode.CHECKPOINTED):
        print(f"{request.stage}@{request.iteration}: {result.reason}: {result.message}", file=sys.stderr)
    return result.exit_code


def _refuse(message: str) -> int:
    """What was asked cannot be understood."""
    print(message, file=sys.stderr)
    _leave(StageResult(exit_code=ExitCode.USAGE, reason="BadRequest", message=message))
    return ExitCode.USAGE


def _leave(result: StageResult) -> None:
    """Writes the result to where it was asked for."""
    path = os.environ.get(RESULT_PATH_ENV)
    if not path:
        return
    text = result.to_termination_message()
    try:
        try:
            atomic.write_text(Path(path), text)
        except OSError:  # a pod's termination log is a mount: it can be written, not replaced
            Path(path).write_text(text)
    except (OSError, StageError) as error:  # the exit code still says what happened
        print(f"could not leave the result at {path}: {error}", file=sys.stderr)


def guarded(
    request: StageRequest, root: Path, attempt: Callable[[], StageResult], usage: dict[str, float] | None = None
) -> StageResult:
    """The result of an attempt, whatever happens inside.

    Args:
        request: what the attempt was asked.
        root: the workspace.
        attempt: does the work.
        usage: what the attempt puts its costs into while it goes on: they are told also when it fails.
    """
    result = _ended(request, root, attempt)
    if usage and result.exit_code != ExitCode.OK:
        result = result.model_copy(update={"usage": {**result.usage, **usage}})
    return result


def _ended(request: StageRequest, root: Path, attempt: Callable[[], StageResult]) -> StageResult:
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
    except (Exception, SystemExit) as error:  # a library that calls sys.exit() has not succeeded either
        traceback.print_exc()
        if _disk_full(error):
            full = DiskFull(f"the disk is full below {root}; free some space and run the same command again")
            return failed.model_copy(update={"exit_code": full.exit_code, "reason": full.reason, "message": str(full)})
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        return failed.model_copy(update={"reason": type(error).__name__, "message": message})


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
        _link(request, root, folder, published)
        return _result(published, reused=not request.collect, paid=_paid_before(request, root, published))
    if request.collect:
        raise TemporaryError(f"{folder}: nothing was published here; the stage has to run again")
    world = World.of()
    return launch(request, world, stop) if world.needs_torchrun else work(request, root, stop, Ranks(), usage)


def work(
    request: StageRequest, root: Path, stop: threading.Event, ranks: Ranks, usage: dict[str, float] | None = None
) -> StageResult:
    """Runs the stage's code and publishes. Of several processes the main one publishes; all return its result."""
    context = _context(request, root, stop, ranks, usage)
    run: Callable[[StageContext[Any]], Outcome] = process_tuning.load(MODULES[request.stage]).run
    if ranks.main:
        fencing.raise_fence(root, request)
    _set_up(context.parameters.seed, request.threads)
    wall, cpu = time.monotonic(), _cpu_seconds()
    try:
        if ranks.main:
            context.writer.open()
        ranks.barrier()
        outcome = run(context)
        spent = {"wallSeconds": time.monotonic() - wall, "cpuSeconds": _cpu_seconds() - cpu}
        spent = {name: round(seconds, 3) for name, seconds in spent.items()}
        return ranks.share(_publish(context, outcome, spent) if ranks.main else None)
    except BaseException:
        if ranks.main and not _stands(context.writer):
            context.writer.discard()
        raise


def _check_names(request: StageRequest) -> None:
    """Refuses names that would lead out of their folder: they become parts of paths."""
    names = {"input hash": request.input_hash, "cycle name": request.cycle.name}
    names |= {"cycle uid": request.cycle.uid or "none", "token": request.token or "none"}
    for what, name in names.items():
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{what} {name[:80]!r}: only letters, digits, '.', '_' and '-' may be in it")
    if not 0 <= request.shard.index < request.shard.count:
        raise ConfigError(f"shard {request.shard.index} of {request.shard.count}: there is no such shard")


def _context(
    request: StageRequest, root: Path, stop: threading.Event, ranks: Ranks, usage: dict[str, float] | None
) -> StageContext[Any]:
    if request.stage not in MODULES:
        raise ConfigError(f"this version has no stage {request.stage}")
    try:
        parameters = parameters_model(request.stage).model_validate(request.parameters)
    except ValidationError as error:
        raise ConfigError(f"parameters of stage {request.stage}: {error}") from error
    return StageContext(request, parameters, root, stop=stop, ranks=ranks, usage=usage)


def _cpu_seconds() -> float:
    """Processor time of this process and its ended children: unlike wall time, the same on a busy machine."""
    return sum(os.times()[:4])


def _publish(context: StageContext[Any], outcome: Outcome, spent: dict[str, float]) -> StageResult:
    """The commit: parts durable, fence still ours, then the manifest."""
    request, writer, folder = context.request, context.writer, context.writer.base
    with atomic.disk_errors(writer.folder):
        atomic.fsync_tree(writer.folder)
        parts = writer.parts()
    fencing.check(context.root, request)
    ours = manifest.Manifest(
        stage=request.stage,
        input_hash=request.input_hash,
        code_version=CODE_VERSION[request.stage],
        cycle=request.cycle.name,
        iteration=request.iteration,
        attempt=request.attempt,
        parts=parts,
        inputs={role: ref.output_digest for role, ref in sorted(request.inputs.items())},
        parameters=request.parameters,
        counters=outcome.counters,
        promoted=outcome.promoted,
        usage={**spent, **context.usage, **outcome.usage},
        packages=_packages(),
    )
    standing = manifest.commit(folder, ours, writer.work)
    if standing is not ours:
        manifest.verify(folder, standing)
    writer.clean(standing)
    _link(request, context.root, folder, standing)
    return _result(standing).model_copy(update={"usage": ours.usage})  # what we spent, whoever was first


def _stands(writer: ArtifactWriter) -> bool:
    """Whether what this attempt wrote is published: an error after the commit must not take the parts away."""
    try:
        published = manifest.load(writer.base)
    except StageError:
        return False
    return published is not None and any(part.path.startswith(f"{writer.attempt}/") for part in published.parts)


def _link(request: StageRequest, root: Path, folder: Path, published: manifest.Manifest) -> None:
    """Names the artifact in the cycle's own folder, for people: `cycles/<cycle>/iterations/i002/sft`.

    No stage reads these links, so a file system that has none is no reason to fail.
    """
    link = root / paths.iteration_link(request.cycle.name, request.iteration, request.stage)
    links = [(link, folder.parent if request.shard.count > 1 else folder)]
    if request.stage is StageName.REPORT and published.parts:
        attempt = Path(published.parts[0].path).parts[0]
        links.append((root / paths.report(request.cycle.name), folder / attempt))
    for name, target in links:
        temporary = atomic.temporary_name(name)
        try:
            name.parent.mkdir(parents=True, exist_ok=True)
            temporary.symlink_to(os.path.relpath(target, name.parent))
            temporary.replace(name)
        except OSError as error:
            print(f"could not link {name} to {target}: {error}", file=sys.stderr)


def _paid_before(request: StageRequest, root: Path, published: manifest.Manifest) -> dict[str, float]:
    """What an earlier attempt of this very cycle paid for the artifact: its result may never have been read."""
    usd, spend = published.usage.get("generatorUSD"), root / paths.spend(request.cycle.name, request.cycle.uid)
    ours = usd is not None and any(spend.glob(f"{request.input_hash}-*"))
    return {"generatorUSD": usd} if ours and usd else {}


def _result(published: manifest.Manifest, *, reused: bool = False, paid: dict[str, float] | None = None) -> StageResult:
    return StageResult(
        exit_code=ExitCode.OK,
        reason="Reused" if reused else "Succeeded",
        input_hash=published.input_hash,
        output_digest=published.output_digest,
        reused=reused,
        promoted=published.promoted,
        metrics=published.counters,
        usage=(paid or {}) if reused else published.usage,
    )


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
        process_tuning.keep_freed()


def _packages() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _disk_full(error: BaseException) -> bool:
    """Whether a full disk is behind the error; libraries wrap it in errors of their own."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if os.strerror(errno.ENOSPC) in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


if __name__ == "__main__":
    sys.exit(main())
