"""Stage reward: R⁽⁰⁾ on D_grade, and its retraining on preferences in each iteration."""

from __future__ import annotations

from medgr2_api.training_spec import AnswerFormat, Grades, ResolvedPromotion, ResolvedRewardTraining, RewardHead

from .definition import Iterations, Of, Read, Source, StageDefinition, StageParameters


class RewardParameters(StageParameters):
    """R⁽⁰⁾ (iteration 0) or its retraining."""

    retrain: bool
    """false: R⁽⁰⁾ on D_grade; true: retraining on preferences."""
    head: RewardHead
    """Which hidden state the scalar head of the reward model reads."""
    grades: Grades
    """Target scores of D_grade and of the preferences."""
    training: ResolvedRewardTraining
    """How the reward model learns."""
    replay_fraction: float
    """Share of graded rows in a retraining."""
    promotion: ResolvedPromotion
    """When a retrained model is taken over."""
    checkpoint: str | None = None
    """The user's own R⁽⁰⁾, if any; iteration 0 only."""
    answer_format: AnswerFormat
    """What stands between <answer> and </answer>."""


def _build(source: Source) -> RewardParameters:
    model = source.spec.reward_model
    return RewardParameters(
        seed=source.seed,
        retrain=source.iteration > 0,
        head=model.head,
        grades=model.grades,
        # R⁽⁰⁾ is not retrained: another way of retraining must not repeat it
        training=model.training if source.iteration else model.training.model_copy(update={"retrain_trainer": {}}),
        replay_fraction=model.replay_fraction,
        promotion=model.promotion,
        checkpoint=model.checkpoint if source.iteration == 0 else None,
        answer_format=source.spec.answer_format,
    )


REWARD = StageDefinition(
    name="reward",
    sentence="Trains R⁽⁰⁾ on D_grade; in the loop R⁽ᵗ⁺¹⁾ on preferences, taken over only if its gate passes.",
    parameters=RewardParameters,
    build=_build,
    spec_paths={
        "head": "rewardModel.head",
        "grades": "rewardModel.grades",
        "training": "rewardModel.training",
        "replayFraction": "rewardModel.replayFraction",
        "promotion": "rewardModel.promotion",
        "checkpoint": "rewardModel.checkpoint",
    },
    iterations=Iterations.BOTH,
    reads=(
        Read("prepare", "prepare", Of.FIRST),
        Read("preferences", "preferences"),
        Read("reward", "reward", Of.NEWEST),
    ),
    publishes=("model/", "calibration.parquet", "metrics.json", "gate.json", "training_log.json"),
    for_next_round=True,
    distributed=True,
    makes="reward",
    promoted=True,
    first_on_demand=True,
)
