"""What a checkpoint of a cycle is called: `grpo@2`, or `base` for the model that the loop started from. No torch."""

from __future__ import annotations

import re

from medgr2_api import paths
from medgr2_api.stage_contract import ExitCode

from ..errors import StageError
from ..report.cycle_artifacts import CycleArtifacts
from ..store.artifact import ArtifactReader

BASE = "base"
_STAGES = ("sft", "grpo")
_NAME = re.compile(rf"({'|'.join(_STAGES)})@([0-9]{{1,3}})")


class NoSuchCheckpoint(StageError):
    """The cycle has no checkpoint of this name (exit 2)."""

    exit_code = ExitCode.USAGE


def parse(artifacts: CycleArtifacts, cycle: str, name: str) -> tuple[str, int]:
    """Stage and iteration of a checkpoint that is there.

    Raises:
        NoSuchCheckpoint: there is none of that name.
        CorruptArtifact: it is not there any more.
    """
    if name == BASE:
        return BASE, 0
    matched = _NAME.fullmatch(name)
    if matched is None:
        raise NoSuchCheckpoint(f"{name!r} is no checkpoint: expected sft@N, grpo@N or {BASE}, N an iteration")
    stage, iteration = matched[1], int(matched[2])
    if iteration not in artifacts.linked(stage):
        there = ", ".join(f"{one}@{number}" for one in _STAGES for number in artifacts.linked(one))
        raise NoSuchCheckpoint(f"{cycle}: has no checkpoint {name}; there: {there or 'no trained one'}, {BASE}")
    artifact = artifacts.input(f"{stage}-{iteration}")
    if not has_checkpoint(artifact):
        why = f": {artifact.manifest.message}" if artifact.manifest.message else ""
        raise NoSuchCheckpoint(f"{cycle}: {name} trained nothing{why}; take another with --checkpoint")
    return stage, iteration


def has_checkpoint(artifact: ArtifactReader) -> bool:
    """Whether an artifact has a model: a stage may have skipped its training."""
    return artifact.has("model/config.json") or artifact.has(paths.ADAPTER_BASE)
