"""Stage grpo: reinforcement learning of the policy with group-relative advantages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medgr2_api.training_spec import AnswerFormat, ResolvedGRPO, RewardTermType

from .curate import TRAINING_SET
from .definition import Iterations, Of, Read, Source, StageDefinition, StageParameters

if TYPE_CHECKING:
    from medgr2_api.cycle import ResolvedSpec


class GRPOParameters(StageParameters):
    """Reinforcement learning of the policy by GRPO."""

    grpo: ResolvedGRPO
    """Rewards, prompts and how the policy learns."""
    answer_format: AnswerFormat
    """What stands between <answer> and </answer>."""


def _build(source: Source) -> GRPOParameters:
    return GRPOParameters(seed=source.seed, grpo=source.spec.policy.grpo, answer_format=source.spec.answer_format)


def learns_from_reward(spec: ResolvedSpec) -> bool:
    """Whether R is a term of the reward."""
    return any(term.type is RewardTermType.REWARD_MODEL and term.weight for term in spec.policy.grpo.rewards)


GRPO = StageDefinition(
    name="grpo",
    sentence="Trains the policy by GRPO on the reward model's scores and on matching trusted answers.",
    parameters=GRPOParameters,
    build=_build,
    spec_paths={
        "grpo": "policy.grpo",
    },
    iterations=Iterations.LOOP,
    reads=(
        *TRAINING_SET,
        Read("sft", "sft"),
        Read("reward", "reward", Of.NEWEST, when=learns_from_reward),
    ),
    publishes=("model/", "rollouts.parquet", "log.json"),
    code_version=3,  # more forms of an answer are read; a generation configuration of ours
    distributed=True,
    makes="policy",
)
