"""The whole cycle: its stages, its disk, its GPU-hours and its time on the clock."""

from __future__ import annotations

import math
from dataclasses import dataclass

from medgr2_api.cycle import ResolvedSpec
from medgr2_api.kubernetes_fragments import quantity
from medgr2_api.stages import DISTILL, EVALUATE, EVALUATE_GRPO, REWARD

from .assumptions import Assumptions, of_data
from .counts import Counts, DataSize
from .disk import BaseFiles, disk_need
from .memory import Need
from .result import Hardware, ModelShapes, StageFit
from .setting import Setting
from .stages import stages

#: Stages that run beside the next iteration's first ones.
_BESIDE = (EVALUATE.name, EVALUATE_GRPO.name, REWARD.name, DISTILL.name)


@dataclass(frozen=True)
class CycleFit:
    """What a cycle needs, and whether it has it."""

    stages: tuple[StageFit, ...]
    disk: Need
    disk_limit: float
    """Bytes that the workspace asks for or has; 0: not told."""
    counts: Counts
    data: DataSize
    models: ModelShapes
    assumptions: Assumptions

    @property
    def fits(self) -> bool:
        return all(stage.fits for stage in self.stages) and self.disk_fits

    @property
    def disk_fits(self) -> bool:
        return not 0 < self.disk_limit < self.disk.total

    @property
    def gpu_hours(self) -> float:
        """Of all runs of all stages whose time is known."""
        return sum(stage.runs * stage.gpu_hours for stage in self.stages if not math.isnan(stage.seconds))

    @property
    def seconds(self) -> float:
        """On the clock: an iteration's stages one after another, but those that run beside them, of which the longest
        counts."""
        known = [stage for stage in self.stages if not math.isnan(stage.seconds)]
        chain = sum(stage.runs * stage.seconds for stage in known if stage.name not in _BESIDE)
        return chain + max((stage.runs * stage.seconds for stage in known if stage.name in _BESIDE), default=0.0)

    @property
    def untimed(self) -> list[str]:
        """Stages whose time nobody knows."""
        return [stage.name for stage in self.stages if math.isnan(stage.seconds)]


def fit(
    spec: ResolvedSpec,
    models: ModelShapes,
    data: DataSize,
    hardware: Hardware,
    *,
    known: Assumptions | None = None,
    files: BaseFiles | None = None,
    free: float = 0.0,
    pixels: float = 0.0,
) -> CycleFit:
    """Reckons a cycle.

    Args:
        spec: resolved.
        models: the shapes of its models.
        data: how much of it there is.
        hardware: what is given from outside the spec.
        known: what is assumed.
        files: sizes of the base models' files, where they are there.
        free: bytes free in the workspace, where it is on this computer.
        pixels: of all images, where they have been looked at.
    """
    setting = Setting(spec, models, data, hardware, known or of_data(spec))
    need = disk_need(spec, models, data, setting.counts, files or BaseFiles(), pixels)
    limit = claimed(spec) or free
    return CycleFit(tuple(stages(setting)), need, limit, setting.counts, data, models, setting.known)


def claimed(spec: ResolvedSpec) -> float:
    """Bytes of storage that the workspace's claim asks for; 0: it is another's claim."""
    template = spec.workspace.volume_claim_template
    if template is None:
        return 0.0
    document = template.dump() if hasattr(template, "dump") else dict(template)
    requests = ((document.get("spec") or {}).get("resources") or {}).get("requests") or {}
    asked = quantity(requests.get("storage", ""))
    return float(asked) if asked is not None else 0.0
