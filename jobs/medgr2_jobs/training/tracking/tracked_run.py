"""Which run of a training is followed: its names, and where its files lie."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from medgr2_api import paths
from medgr2_api.stage_contract import StageRequest


@dataclass(frozen=True)
class TrackedRun:
    """One attempt of one training stage."""

    request: StageRequest
    root: Path
    """The workspace."""

    @property
    def group(self) -> str:
        """What attempts of one stage share: `omnimed/grpo@2`, and the token of a restart."""
        request = self.request
        restart = f"-{request.token}" if request.token else ""
        return f"{request.cycle.name}/{request.stage}@{request.iteration}{restart}"

    @property
    def name(self) -> str:
        """`omnimed/grpo@2/1`: cycle, stage, iteration, attempt."""
        return f"{self.group}/{self.request.attempt}"

    @property
    def id(self) -> str:
        """As short as W&B wants it; no other run has it, on this volume or another."""
        names = (self.request.cycle.uid, self.name, self.request.input_hash)
        return hashlib.sha256("/".join(names).encode()).hexdigest()[:16]

    @property
    def tags(self) -> dict[str, str]:
        """By which runs are found: those of one `medgr2.input_hash` go on from each other's checkpoints."""
        request = self.request
        return {
            "medgr2.cycle": request.cycle.name,
            "medgr2.stage": request.stage,
            "medgr2.iteration": str(request.iteration),
            "medgr2.attempt": str(request.attempt),
            "medgr2.input_hash": request.input_hash,
        }

    @property
    def tensorboard(self) -> Path:
        """This attempt's folder of event files."""
        request = self.request
        attempt = paths.attempt_name(request.iteration, request.stage, request.token, request.attempt)
        return self.root / paths.tensorboard(request.cycle.name) / attempt

    @property
    def mlflow(self) -> Path:
        """The cycle's file store."""
        return self.root / paths.mlflow(self.request.cycle.name)

    @property
    def wandb(self) -> Path:
        """The cycle's runs; W&B itself calls the folder so, below the one it is given."""
        return self.root / paths.wandb(self.request.cycle.name)
