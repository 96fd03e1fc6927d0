"""Stage sft: supervised fine-tuning of the policy on D_gen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medgr2_api.training_spec import AnswerFormat, InitFrom, ModelLoading, ResolvedTraining

from .curate import TRAINING_SET
from .definition import Iterations, Of, Read, Source, StageDefinition, StageParameters

if TYPE_CHECKING:
    from medgr2_api.cycle import ResolvedSpec


class SFTParameters(StageParameters):
    """Supervised fine-tuning of the policy on D_gen."""

    init_from: InitFrom
    """Where the training starts."""
    training: ResolvedTraining
    """How the policy learns."""
    loading: ModelLoading = ModelLoading()
    """How the model is held meanwhile."""
    answer_format: AnswerFormat
    """What stands between <answer> and </answer>."""


def _build(source: Source) -> SFTParameters:
    return SFTParameters(
        seed=source.seed,
        init_from=source.spec.policy.init_from,
        training=source.spec.policy.sft,
        loading=source.spec.policy.loading,
        answer_format=source.spec.answer_format,
    )


def _goes_on(spec: ResolvedSpec) -> bool:
    return spec.policy.init_from is InitFrom.PREVIOUS


SFT = StageDefinition(
    name="sft",
    sentence="Fine-tunes the policy on D_gen.",
    parameters=SFTParameters,
    build=_build,
    spec_paths={
        "initFrom": "policy.initFrom",
        "training": "policy.sft",
        "loading": "policy.loading",
    },
    iterations=Iterations.LOOP,
    reads=(
        *TRAINING_SET,
        Read("policy", "grpo", Of.PREVIOUS, required=False, when=_goes_on, otherwise="sft"),
    ),
    publishes=("model/", "log.json"),
    code_version=3,  # publishes a generation configuration of ours
    distributed=True,
    makes="policy",
    computes=True,
)
