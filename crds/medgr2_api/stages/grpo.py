"""Stage grpo: reinforcement learning of the policy with group-relative advantages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from medgr2_api.engine import IN_PROCESS, Engine
from medgr2_api.hashing import Since
from medgr2_api.policy import PolicyRelease, ResolvedGRPO, RewardTerm, RewardTermType
from medgr2_api.training_spec import AnswerFormat, ModelLoading

from .curate import TRAINING_SET
from .definition import Iterations, Of, Read, Source, StageDefinition, StageParameters

if TYPE_CHECKING:
    from medgr2_api.cycle import ResolvedSpec


class GRPOParameters(StageParameters):
    """Reinforcement learning of the policy by GRPO."""

    grpo: ResolvedGRPO
    """Rewards, prompts and how the policy learns."""
    loading: ModelLoading = ModelLoading()
    """How the model is held meanwhile."""
    release: Annotated[PolicyRelease, Since("Last")]
    """Whether the checkpoint has to be at least as good as that of SFT to go on."""
    answer_format: AnswerFormat
    """What stands between <answer> and </answer>."""
    engine: Engine = IN_PROCESS
    """Who samples."""


def _build(source: Source) -> GRPOParameters:
    policy = source.spec.policy
    return GRPOParameters(
        seed=source.seed,
        grpo=policy.grpo,
        loading=policy.loading,
        release=policy.release,
        answer_format=source.spec.answer_format,
        engine=policy.engine,
    )


def learns_from(rewards: Sequence[RewardTerm]) -> bool:
    """Whether R is a term of a reward."""
    return any(term.type is RewardTermType.REWARD_MODEL and term.weight for term in rewards)


def learns_from_reward(spec: ResolvedSpec) -> bool:
    """Whether R is a term of GRPO's reward."""
    return learns_from(spec.policy.grpo.rewards)


GRPO = StageDefinition(
    name="grpo",
    sentence="Trains the policy by GRPO on the reward model's scores and on matching trusted answers. Not where the"
    " policy beats its judge; and what comes out worse does not go on ([decisions](decisions.md), 23 and 24).",
    parameters=GRPOParameters,
    build=_build,
    spec_paths={
        "engine": "policy.engine",
        "grpo": "policy.grpo",
        "loading": "policy.loading",
        "release": "policy.release",
    },
    iterations=Iterations.LOOP,
    reads=(
        *TRAINING_SET,
        Read("sft", "sft"),
        Read("reward", "reward", Of.NEWEST, when=learns_from_reward),
    ),
    publishes=("release.json",),
    may_publish=("model/", "rollouts.parquet", "log.json"),
    code_version=4,  # may skip the training, and says whether its checkpoint goes on
    distributed=True,
    makes="policy",
    promoted=True,
    computes=True,
)
