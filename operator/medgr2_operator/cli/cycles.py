"""Where a cycle is, by one rule, and what can be done with it there: the same verbs on this computer and on a cluster.

A cycle that the workspace `.medgr2` knows is local; otherwise the cluster is asked. With `-w` only that workspace is
looked at, and with an option of a cluster only the cluster. `kubectl medgr2` only knows clusters, unless `-w` is given.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from medgr2_api import paths

from .errors import CommandError

if TYPE_CHECKING:
    from .cluster_options import ReaderPodOptions, WhereOptions
    from .models import PictureQuestion
    from .review import ExportRequest

DEFAULT_WORKSPACE = Path(".medgr2")


class Cycles(Protocol):
    """The cycles of one place. Every verb says what it did, and returns the exit code.

    `wait` is in seconds: until what was asked has happened; 0: do not.
    """

    def show_all(self) -> int:
        """A line for each."""

    def show(self, cycle: str) -> int:
        """One, with its stages."""

    def logs(self, cycle: str, stage: str, attempt: int, follow: bool, *, volume: bool) -> int:
        """What a stage prints."""

    def suspend(self, cycle: str, wait: float) -> int:
        """Lets running stages write a checkpoint and stop."""

    def resume(self, cycle: str, wait: float) -> int:
        """Lets it go on."""

    def restart(self, cycle: str, stage: str, wait: float) -> int:
        """Runs a stage, and all that depends on it, again."""

    def approve(self, cycle: str, stage: str, wait: float) -> int:
        """Lets what waits for approval go on."""

    def model(self, cycle: str) -> int:
        """Where the trained models are, which one to take, and how to use it."""

    def export(self, cycle: str, target: Path, checkpoint: str) -> int:
        """Writes a trained model into the folder TARGET; without a name of a checkpoint the best one."""

    def ask(self, cycle: str, question: PictureQuestion) -> int:
        """What a trained model answers about a picture."""

    def report(self, cycle: str, target: Path | None, force: bool) -> int:
        """Says where the newest report is; copies it to TARGET, from elsewhere in any case."""

    def copy(self, cycle: str, path: str, target: Path, force: bool) -> int:
        """Copies a file or folder of its workspace to TARGET."""

    def lineage(self, cycle: str, triplet: str, as_json: bool) -> int:
        """Where a candidate came from, and went."""

    def export_review(self, request: ExportRequest) -> int:
        """Writes the folder for an expert."""

    def import_review(
        self, cycle: str, iteration: int, file: Path, *, replace: bool, restart: bool, wait: float
    ) -> int:
        """Takes an expert's decisions."""


def place_of(cycle: str, where: WhereOptions, pod: ReaderPodOptions | None = None) -> Cycles:
    """The place where a cycle is.

    Raises:
        CommandError: the options name two places, or the name is none.
    """
    if "/" in cycle or cycle in (".", ".."):
        raise CommandError(f"{cycle!r} is not the name of a cycle")
    workspace = where.workspace
    if workspace is not None and where.cluster_words():
        raise CommandError(
            f"--workspace is of this computer, {where.cluster_words()[0]} of a cluster: give one of them"
        )
    if workspace is None and not where.cluster_words() and not _is_kubectl() and _knows(DEFAULT_WORKSPACE, cycle):
        workspace = DEFAULT_WORKSPACE
    if workspace is not None:
        from .local_cycles import LocalCycles

        return LocalCycles(existing(workspace))
    from .cluster_cycles import ClusterCycles

    return ClusterCycles(where, pod)


def existing(workspace: Path) -> Path:
    """The workspace, to look into: a misspelled one has no cycles to show, and must not pass for an empty one.

    Raises:
        CommandError: there is no such folder.
    """
    if not workspace.is_dir():
        what = "is no folder" if os.path.lexists(workspace) else "there is no such folder"
        raise CommandError(f"{workspace}: {what}; a workspace is what `medgr2 run` was given as --workspace")
    return workspace


def _knows(workspace: Path, cycle: str) -> bool:
    """Whether it has the cycle; of no cycle in particular: any."""
    folder = os.path.join(workspace, paths.cycle(cycle or "x").parent)
    return os.path.isdir(os.path.join(folder, cycle) if cycle else folder)


def _is_kubectl() -> bool:
    return os.path.basename(sys.argv[0]).startswith("kubectl")
