"""Every stage of a cycle that holds a model or waits for one."""

from __future__ import annotations

from collections.abc import Callable

from medgr2_api.stages import DISTILL, EVALUATE, EVALUATE_GRPO, GENERATE, GRPO, PREFERENCES, RELABEL, REWARD, SCORE, SFT

from . import readers, trainings
from .result import StageFit
from .setting import Setting

#: In the order of an iteration.
_STAGES: dict[str, Callable[[Setting], StageFit | None]] = {
    GENERATE.name: readers.generate,
    SCORE.name: readers.score,
    SFT.name: trainings.sft,
    GRPO.name: trainings.grpo,
    RELABEL.name: readers.relabel,
    PREFERENCES.name: readers.preferences,
    REWARD.name: trainings.reward,
    DISTILL.name: trainings.distill,
    EVALUATE.name: readers.evaluate,
    EVALUATE_GRPO.name: readers.evaluate_grpo,
}


def stages(setting: Setting) -> list[StageFit]:
    """Those that the cycle has."""
    made = [make(setting) for name, make in _STAGES.items() if setting.spec.stage(name).enabled]
    return [stage for stage in made if stage is not None]
