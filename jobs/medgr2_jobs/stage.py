"""The one contract that every stage keeps: read the request, run, publish, leave a result and an exit code.

Run as `python -m medgr2_jobs.stage` with the request in `MEDGR2_STAGE_REQUEST`; `zygote.py` calls `execute` in a
forked process.
"""

from __future__ import annotations

import errno
import importlib
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from medgr2_api import workspace
from medgr2_api.parameters import CODE_VERSION, parameters_model
from medgr2_api.stages import REQUEST_ENV, RESULT_PATH_ENV, ExitCode, StageName, StageRequest, StageResult
from pydantic import ValidationError

from .context import WORKSPACE_ENV, Outcome, StageContext
from .errors import Checkpointed, ConfigError, StageError, TemporaryError
from .store import atomic, fence, manifest

#: Each module has `run(ctx: StageContext) -> Outcome`; imported only when its stage runs.
MODULES: dict[StageName, str] = {
    StageName.PREPARE: "medgr2_jobs.data.prepare",
    StageName.GENERATE: "medgr2_jobs.generate.stage",
    StageName.SCORE: "medgr2_jobs.reward.score",
    StageName.CURATE: "medgr2_jobs.curate.stage",
    StageName.SFT: "medgr2_jobs.policy.sft",
    StageName.GRPO: "medgr2_jobs.policy.grpo",
    StageName.PREFERENCES: "medgr2_jobs.policy.preferences",
    StageName.REWARD: "medgr2_jobs.reward.stage",
    StageName.EVALUATE: "medgr2_jobs.evaluate.stage",
    StageName.REPORT: "medgr2_jobs.report.stage",
}

_PACKAGES = ("medgr2", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "pyarrow", "pillow", "numpy")


def main() -> int:
    """Entry point of a stage's process."""
    text = os.environ.get(REQUEST_ENV)
    if not text:
        print(f"{REQUEST_ENV} is not set: a stage is started by the operator or by `medgr2 run`", file=sys.stderr)
        return ExitCode.USAGE
    try:
        request = StageRequest.model_validate_json(text)
    except ValidationError as error:
        print(f"{REQUEST_ENV} is not a stage request: {error}", file=sys.stderr)
        return ExitCode.USAGE
    return execute(request, Path(os.environ.get(WORKSPACE_ENV, "/workspace")))


def execute(request: StageRequest, root: Path) -> int:
    """Runs a stage to its end; leaves its result at `MEDGR2_RESULT_PATH` and returns the exit code."""
    result = _guarded(request, root)
    path = os.environ.get(RESULT_PATH_ENV)
    if path:
        try:
            atomic.write_text(Path(path), result.to_termination_message())
        except (OSError, StageError) as error:  # the exit code still says what happened
            print(f"could not leave the result at {path}: {error}", file=sys.stderr)
    if result.exit_code not in (ExitCode.OK, ExitCode.CHECKPOINTED):
        print(f"{request.stage}@{request.iteration}: {result.reason}: {result.message}", file=sys.stderr)
    return result.exit_code


def _guarded(request: StageRequest, root: Path) -> StageResult:
    """The stage's result, whatever happens inside."""
    failed = StageResult(exit_code=ExitCode.ERROR, input_hash=request.input_hash)
    try:
        return _run(request, root)
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
    except Exception as error:
        traceback.print_exc()
        if _disk_full(error):
            full = TemporaryError(f"the disk is full below {root}; free some space and run the same command again")
            return failed.model_copy(update={"exit_code": full.exit_code, "reason": "DiskFull", "message": str(full)})
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        return failed.model_copy(update={"reason": type(error).__name__, "message": message})


def _run(request: StageRequest, root: Path) -> StageResult:
    folder = root / workspace.artifact(request.stage, request.input_hash)
    if request.shard.count > 1:
        folder /= workspace.shard(request.shard.index)
    published = manifest.load(folder)
    if published is not None:
        manifest.verify(folder, published)
        _link(request, root, folder)
        return _result(published, reused=not request.collect)
    if request.collect:
        raise TemporaryError(f"{folder}: nothing was published here; the stage has to run again")

    context = _context(request, root)
    run: Callable[[StageContext[Any]], Outcome] = importlib.import_module(MODULES[request.stage]).run
    fence.raise_fence(root, request)
    _seed_everything(context.parameters.seed, request.threads)
    previous = signal.signal(signal.SIGTERM, lambda *_: context.stop.set())
    started = time.monotonic()
    try:
        context.writer.open()
        outcome = run(context)
    except BaseException:
        context.writer.discard()
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
    return _result(_publish(context, outcome, folder, time.monotonic() - started))


def _context(request: StageRequest, root: Path) -> StageContext[Any]:
    if request.stage not in MODULES:
        raise ConfigError(f"this version has no stage {request.stage}")
    try:
        parameters = parameters_model(request.stage).model_validate(request.parameters)
    except ValidationError as error:
        raise ConfigError(f"parameters of stage {request.stage}: {error}") from error
    return StageContext(request, parameters, root)


def _publish(context: StageContext[Any], outcome: Outcome, folder: Path, seconds: float) -> manifest.Manifest:
    """The commit: parts durable, fence still ours, then the manifest."""
    request = context.request
    atomic.fsync_tree(context.writer.folder)
    parts = context.writer.parts()
    fence.check(context.root, request)
    published = manifest.commit(
        folder,
        manifest.Manifest(
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
            usage={"wallSeconds": round(seconds, 3), **outcome.usage},
            packages=_packages(),
        ),
    )
    atomic.remove_tree(context.work)
    _link(request, context.root, folder)
    return published


def _link(request: StageRequest, root: Path, folder: Path) -> None:
    """Names the artifact in the cycle's own folder, for people: `cycles/<cycle>/iterations/i002/sft`."""
    link = root / workspace.iteration_link(request.cycle.name, request.iteration, request.stage)
    links = [(link, folder.parent if request.shard.count > 1 else folder)]
    if request.stage is StageName.REPORT:
        published = manifest.load(folder)
        assert published is not None
        links.append((root / workspace.report(request.cycle.name), folder / Path(published.parts[0].path).parts[0]))
    for name, target in links:
        name.parent.mkdir(parents=True, exist_ok=True)
        temporary = name.with_name(f".{name.name}.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(target, name.parent))
        temporary.replace(name)


def _result(published: manifest.Manifest, *, reused: bool = False) -> StageResult:
    return StageResult(
        exit_code=ExitCode.OK,
        reason="Reused" if reused else "Succeeded",
        input_hash=published.input_hash,
        output_digest=published.output_digest,
        reused=reused,
        promoted=published.promoted,
        metrics=published.counters,
        usage={} if reused else published.usage,
    )


def _seed_everything(seed: int, threads: int) -> None:
    """Seeds what is loaded; a stage that never touches torch must not pay for importing it."""
    random.seed(seed)
    if "numpy" in sys.modules:
        import numpy as np

        np.random.seed(seed)
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(seed)
        torch.set_num_threads(threads)


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
