"""Stage reward: R⁽⁰⁾ on D_grade, and its retraining in each iteration."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from medgr2_api.hashing import Since
from medgr2_api.reward_model import Grades, Mismatches, ResolvedPromotion, ResolvedRewardTraining, RetrainOn, RewardHead
from medgr2_api.training_spec import AnswerFormat, InitFrom

from .definition import Iterations, Of, Read, Source, StageDefinition, StageParameters
from .preferences import on_policy_answers
from .relabel import SETTLED, on_settled_questions


class RewardParameters(StageParameters):
    """R⁽⁰⁾ (iteration 0) or its retraining."""

    retrain: bool
    """false: R⁽⁰⁾ on D_grade; true: a retraining."""
    retrain_on: Annotated[RetrainOn | None, Since("PolicyAnswers")] = None
    """What a retraining learns from, beside D_grade."""
    retrain_from: Annotated[InitFrom | None, Since("Previous")] = None
    """Where a retraining starts."""
    head: RewardHead
    """Which hidden state the scalar head of the reward model reads."""
    grades: Grades
    """Target scores of D_grade and of what a retraining learns from."""
    training: ResolvedRewardTraining
    """How the reward model learns."""
    mismatches_per_item: Mismatches | None = None
    """How many wrong-image and wrong-answer rows each settled question gets; retraining on these only."""
    replay_fraction: float
    """Share of rows of D_grade in each batch of a retraining; 0 in iteration 0."""
    promotion: ResolvedPromotion
    """When a retrained model is taken over."""
    checkpoint: str | None = None
    """The user's own R⁽⁰⁾, if any; iteration 0 only."""
    answer_format: AnswerFormat
    """What stands between <answer> and </answer>."""


def _build(source: Source) -> RewardParameters:
    model, retrain = source.spec.reward_model, source.iteration > 0
    settled = retrain and on_settled_questions(source.spec)
    # R⁽⁰⁾ is not retrained: another way of retraining must not repeat it
    return RewardParameters(
        seed=source.seed,
        retrain=retrain,
        retrain_on=model.retrain_on if retrain else None,
        retrain_from=model.retrain_from if retrain else None,
        head=model.head,
        grades=model.grades,
        training=model.training if retrain else model.training.model_copy(update={"retrain_trainer": {}}),
        mismatches_per_item=model.mismatches_per_item if settled else None,
        replay_fraction=model.replay_fraction if retrain else 0.0,
        promotion=model.promotion,
        checkpoint=None if retrain else model.checkpoint,
        answer_format=source.spec.answer_format,
    )


REWARD = StageDefinition(
    name="reward",
    sentence="Trains R⁽⁰⁾ on D_grade; in the loop R⁽ᵗ⁺¹⁾ on all that is settled so far, or on preferences, taken over"
    " only if its gate passes ([grades.md](grades.md#retraining)).",
    parameters=RewardParameters,
    build=_build,
    spec_paths={
        "retrainOn": "rewardModel.retrainOn",
        "retrainFrom": "rewardModel.retrainFrom",
        "head": "rewardModel.head",
        "grades": "rewardModel.grades",
        "training": "rewardModel.training",
        "mismatchesPerItem": "rewardModel.mismatchesPerItem",
        "replayFraction": "rewardModel.replayFraction",
        "promotion": "rewardModel.promotion",
        "checkpoint": "rewardModel.checkpoint",
    },
    iterations=Iterations.BOTH,
    reads=(
        Read("prepare", "prepare", Of.FIRST),
        Read("preferences", "preferences", when=on_policy_answers),
        *(replace(read, when=on_settled_questions) for read in SETTLED),
        Read("reward", "reward", Of.NEWEST),
    ),
    publishes=("model/", "calibration.parquet", "answers.parquet", "metrics.json", "gate.json", "training_log.json"),
    for_next_round=True,
    distributed=True,
    makes="reward",
    promoted=True,
    first_on_demand=True,
    code_version=2,  # judged by its answers to the validation questions
    computes=True,
)
