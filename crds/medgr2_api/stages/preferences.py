"""Stage preferences: the policy's own answers, graded, for the next reward model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medgr2_api.engine import IN_PROCESS, Engine
from medgr2_api.policy import ResolvedPreferences
from medgr2_api.reward_model import Grades, RetrainOn
from medgr2_api.training_spec import AnswerFormat

from .curate import TRAINING_SET
from .definition import Iterations, Read, Source, StageDefinition, StageParameters

if TYPE_CHECKING:
    from medgr2_api.cycle import ResolvedSpec


class PreferencesParameters(StageParameters):
    """Sampling the policy."""

    preferences: ResolvedPreferences
    """How many prompts and answers, and from where."""
    grades: Grades
    """Target scores of right and wrong answers."""
    answer_format: AnswerFormat
    """What stands between <answer> and </answer>."""
    engine: Engine = IN_PROCESS
    """Who answers for the checkpoints that are asked."""
    shards: int = 1
    """Parts that the work is divided into."""


def _build(source: Source) -> PreferencesParameters:
    return PreferencesParameters(
        seed=source.seed,
        preferences=source.spec.policy.preferences,
        grades=source.spec.reward_model.grades,
        answer_format=source.spec.answer_format,
        engine=source.spec.policy.engine,
        shards=source.spec.stage("preferences").shards,
    )


def on_policy_answers(spec: ResolvedSpec) -> bool:
    """Whether R is retrained on the policy's own answers."""
    return spec.reward_model.retrain_on is RetrainOn.POLICY_ANSWERS


PREFERENCES = StageDefinition(
    name="preferences",
    sentence="Samples answers of the policy and grades them, where the reward model is retrained on these.",
    parameters=PreferencesParameters,
    build=_build,
    spec_paths={
        "engine": "policy.engine",
        "preferences": "policy.preferences",
        "grades": "rewardModel.grades",
        "shards": "stages[preferences].shards",
    },
    iterations=Iterations.LOOP,
    reads=(
        *TRAINING_SET,
        Read("policy", "grpo", otherwise="sft"),
    ),
    publishes=("preferences.parquet",),
    for_next_round=True,
    serves=("reward",),
    sharded=True,
    only_asks=True,
    needed=lambda spec, _: on_policy_answers(spec),
    code_version=2,  # more forms of an answer are read; a generation configuration of ours
    computes=True,
)
