"""Publishes artifacts without running their stages."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from medgr2_api import paths
from medgr2_api.stage_contract import ArtifactRef, CycleRef, StageRequest
from medgr2_jobs.store import manifest
from medgr2_jobs.store.artifact import ArtifactWriter


def publish(
    root: Path,
    stage: str,
    iteration: int,
    *,
    tables: dict[type[Any], list[Any]] | None = None,
    files: dict[str, Any] | None = None,
    folders: dict[str, Path] | None = None,
    counters: dict[str, float] | None = None,
    promoted: bool | None = None,
    parameters: dict[str, Any] | None = None,
    inputs: dict[str, str] | None = None,
    cycle: str = "test",
) -> ArtifactRef:
    """Publishes parts as if `stage` of `iteration` had made them, and links them into the cycle's folder.

    Args:
        root: the workspace.
        stage: which stage.
        iteration: which iteration.
        tables: rows by their class.
        files: JSON documents by file name.
        folders: folders to take, by name.
        counters: headline figures.
        promoted: of a stage whose model has to be promoted.
        parameters: of the stage.
        inputs: digests of what it was made from, by role.
        cycle: name of the cycle.
    """
    name = hashlib.sha256(f"{cycle}/{stage}/{iteration}".encode()).hexdigest()
    request = StageRequest(
        cycle=CycleRef(name=cycle, uid=f"{cycle}-uid"), iteration=iteration, stage=stage, input_hash=name, parameters={}
    )
    writer = ArtifactWriter(root, request)
    writer.open()
    for table, rows in (tables or {}).items():
        writer.table(table, rows)
    for file, content in (files or {}).items():
        writer.path(file).write_text(json.dumps(content))
    for folder, source in (folders or {}).items():
        writer.take(folder, source)
    path = paths.artifact(stage, name)
    published = manifest.commit(
        root / path,
        manifest.Manifest(
            stage=stage, input_hash=name, code_version=1, cycle=cycle, iteration=iteration, attempt=1,
            parts=writer.parts(), inputs=inputs or {}, parameters=parameters or {}, counters=counters or {},
            promoted=promoted,
        ),
        writer.work,
    )  # fmt: skip
    link = root / paths.iteration_link(cycle, iteration, stage)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(root / path)
    return ArtifactRef(stage=stage, iteration=iteration, path=str(path), output_digest=published.output_digest)
