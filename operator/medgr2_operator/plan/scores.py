"""Validation scores: read from evaluations, compared, and the only thing that early stopping looks at."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from medgr2_api.scheduling import EarlyStopping, Metric
from medgr2_api.stage_contract import StageResult
from medgr2_api.status import Score

Checkpoint = Literal["base", "sft", "grpo"]
_CHECKPOINTS: tuple[Checkpoint, ...] = ("base", "sft", "grpo")


def scores_in(iteration: int, result: StageResult) -> list[Score]:
    """The validation scores in an evaluation's result, one per checkpoint."""
    return [
        Score(
            iteration=iteration,
            checkpoint=checkpoint,
            macro_accuracy=macro,
            micro_accuracy=result.metrics.get(f"validation/{checkpoint}/microAccuracy"),
        )
        for checkpoint in _CHECKPOINTS
        if (macro := result.metrics.get(f"validation/{checkpoint}/macroAccuracy")) is not None
    ]


def best(scores: Iterable[Score]) -> Score | None:
    """The highest; of equals the earliest."""
    return max(scores, key=lambda score: (score.macro_accuracy, -score.iteration), default=None)


def by_iteration(scores: Iterable[Score], metric: Metric = Metric.MACRO_ACCURACY) -> dict[int, float]:
    """Each iteration's better checkpoint, in order."""
    found: dict[int, float] = {}
    for score in sorted(scores, key=lambda score: score.iteration):
        value = score.macro_accuracy if metric is Metric.MACRO_ACCURACY else score.micro_accuracy
        if value is not None:
            found[score.iteration] = max(value, found.get(score.iteration, value))
    return found


def stopped_at(scores: Iterable[Score], rule: EarlyStopping, newest_started: int) -> int | None:
    """The iteration after which the loop stops; None: it goes on.

    The base model is iteration 0: a loop that does not beat it has not improved. An iteration that has started is
    frozen, so a rule that was tightened later does not cut it off.
    """
    reference: float | None = None
    idle = 0
    for iteration, value in by_iteration(scores, rule.metric).items():
        if reference is None or (value > reference and value - reference >= rule.min_delta - 1e-12):
            reference, idle = value, 0
        else:
            idle += 1
        if idle >= rule.patience and iteration >= newest_started:
            return iteration
    return None
