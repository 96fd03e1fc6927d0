"""A checkpoint of a cycle with all that is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medgr2_api.stages.prepare import PrepareParameters

from ..errors import ConfigError
from ..models import checkpoint
from ..models.checkpoint import Checkpoint
from ..report.cycle_artifacts import CycleArtifacts
from ..store.artifact import ArtifactReader
from .checkpoint_name import BASE, parse


@dataclass(frozen=True)
class PublishedPolicy:
    """A checkpoint and where it comes from."""

    cycle: str
    name: str
    """`grpo@2` or `base`."""
    stage: str
    """As `results.json` calls the checkpoint: sft, grpo or base."""
    iteration: int
    artifacts: CycleArtifacts
    artifact: ArtifactReader
    """That holds it."""
    checkpoint: Checkpoint

    @property
    def prepared(self) -> PrepareParameters:
        """What the cycle's data and models are."""
        return self.artifacts.input("prepare").parameters(PrepareParameters)


def find(root: Path, cycle: str, name: str) -> PublishedPolicy:
    """The checkpoint of that name.

    Raises:
        CycleNotFound: no such cycle.
        NoSuchCheckpoint: it has no such checkpoint.
        CorruptArtifact: it is not there any more, or damaged.
    """
    if "/" in cycle or cycle in ("", ".", ".."):
        raise ConfigError(f"{cycle!r} is not the name of a cycle")
    artifacts = CycleArtifacts(root, cycle)
    stage, iteration = parse(artifacts, cycle, name)
    role = "prepare" if name == BASE else f"{stage}-{iteration}"
    found = checkpoint.base(artifacts) if name == BASE else checkpoint.published(artifacts, role)
    return PublishedPolicy(cycle, name, stage, iteration, artifacts, artifacts.input(role), found)
