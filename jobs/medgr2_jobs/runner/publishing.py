"""What stands when an attempt has ended: parts, the manifest that commits them, links for people, its result."""

from __future__ import annotations

import logging
import os
from importlib import metadata
from pathlib import Path
from typing import Any

from medgr2_api import paths
from medgr2_api.stage_contract import ExitCode, StageRequest, StageResult
from medgr2_api.stages import REPORT, StageDefinition, definition

from ..errors import ConfigError, StageError
from ..store import atomic, fencing, finite_weights, manifest
from ..store.artifact import ArtifactWriter
from .context import StageContext, StageOutcome

_log = logging.getLogger(__name__)
_PACKAGES = ("medgr2", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "pyarrow", "pillow", "numpy")


def publish(context: StageContext[Any], outcome: StageOutcome, spent: dict[str, float]) -> StageResult:
    """The commit: parts durable, fence still ours, then the manifest.

    Raises:
        ConfigError: the parts are not those that the stage's definition names.
        NotFinite: a published model has weights that are no numbers.
    """
    request, writer, folder = context.request, context.writer, context.writer.base
    finite_weights.check(writer.folder)
    with atomic.disk_errors(writer.folder):
        atomic.fsync_tree(writer.folder)
        parts = writer.parts()
    _check_parts(definition(request.stage), [part.name for part in parts])
    fencing.check(context.root, request)
    ours = manifest.Manifest(
        stage=request.stage,
        input_hash=request.input_hash,
        code_version=definition(request.stage).code_version,
        cycle=request.cycle.name,
        iteration=request.iteration,
        attempt=request.attempt,
        parts=parts,
        inputs={role: ref.output_digest for role, ref in sorted(request.inputs.items())},
        parameters=request.parameters,
        counters=outcome.counters,
        promoted=outcome.promoted,
        message=outcome.message,
        usage={**spent, **context.usage, **outcome.usage},
        packages=_packages(),
    )
    committed = manifest.commit(folder, ours, writer.work)
    if committed is not ours:
        manifest.verify(folder, committed)
    writer.clean(committed)
    _log_parts(committed)
    link(request, context.root, folder, committed)
    return result(committed).model_copy(update={"usage": ours.usage})  # what we spent, whoever was first


def _log_parts(published: manifest.Manifest) -> None:
    """What stands in the artifact now."""
    rows = {part.name: part.rows for part in published.parts if part.rows is not None}
    size = sum(part.bytes for part in published.parts)
    _log.info(
        "published %d files, %d bytes: %s",
        len(published.parts),
        size,
        ", ".join(f"{name} ({n:,} rows)" for name, n in rows.items()) or "no table",
        extra={"fields": {"parts": [part.name for part in published.parts], "rows": rows, "bytes": size}},
    )


def _check_parts(stage: StageDefinition, names: list[str]) -> None:
    missing, undeclared = stage.missing_parts(names), stage.undeclared_parts(names)
    if missing or undeclared:
        problems = [*(f"{name} is missing" for name in missing), *(f"{name} is not declared" for name in undeclared)]
        raise ConfigError(f"stage {stage.name} published other parts than its definition names: {', '.join(problems)}")


def is_published(writer: ArtifactWriter) -> bool:
    """Whether what this attempt wrote is published: an error after the commit must not take the parts away."""
    try:
        published = manifest.load(writer.base)
    except StageError:
        return False
    return published is not None and any(part.path.startswith(f"{writer.attempt}/") for part in published.parts)


def link(request: StageRequest, root: Path, folder: Path, published: manifest.Manifest) -> None:
    """Names the artifact in the cycle's own folder, for people: `cycles/<cycle>/iterations/i002/sft`.

    No stage reads these links, so a file system that has none is no reason to fail.
    """
    link = root / paths.iteration_link(request.cycle.name, request.iteration, request.stage)
    links = [(link, folder.parent if request.shard.count > 1 else folder)]
    if request.stage == REPORT.name and published.parts:
        attempt = Path(published.parts[0].path).parts[0]
        links.append((root / paths.report(request.cycle.name), folder / attempt))
    for name, target in links:
        temporary = atomic.temporary_name(name)
        try:
            name.parent.mkdir(parents=True, exist_ok=True)
            temporary.symlink_to(os.path.relpath(target, name.parent))
            temporary.replace(name)
        except OSError as error:
            _log.warning("could not link %s to %s: %s", name, target, error)


def paid_before(request: StageRequest, root: Path, published: manifest.Manifest) -> dict[str, float]:
    """What an earlier attempt of this very cycle paid for the artifact: its result may never have been read."""
    usd, spend = published.usage.get("generatorUSD"), root / paths.spend(request.cycle.name, request.cycle.uid)
    ours = usd is not None and any(spend.glob(f"{request.input_hash}-*"))
    return {"generatorUSD": usd} if ours and usd else {}


def result(published: manifest.Manifest, *, reused: bool = False, paid: dict[str, float] | None = None) -> StageResult:
    return StageResult(
        exit_code=ExitCode.OK,
        reason="Reused" if reused else "Succeeded",
        message=published.message,
        input_hash=published.input_hash,
        output_digest=published.output_digest,
        reused=reused,
        promoted=published.promoted,
        metrics=published.counters,
        usage=(paid or {}) if reused else published.usage,
    )


def _packages() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
