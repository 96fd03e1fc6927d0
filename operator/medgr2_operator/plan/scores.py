"""Validation scores: read from evaluations, compared, and the only thing that early stopping looks at."""

from __future__ import annotations

from collections.abc import Iterable

from medgr2_api.metrics import MACRO_ACCURACY, scores
from medgr2_api.scheduling import EarlyStopping
from medgr2_api.stage_contract import StageResult
from medgr2_api.status import MetricScore

_CHECKPOINTS = ("base", "sft", "grpo")


def scores_in(iteration: int, result: StageResult) -> list[MetricScore]:
    """The validation scores in an evaluation's result, one per checkpoint."""
    measured = {checkpoint: scores(result.metrics, checkpoint) for checkpoint in _CHECKPOINTS}
    return [
        MetricScore.of(iteration, checkpoint, values)
        for checkpoint, values in measured.items()
        if MACRO_ACCURACY.name in values
    ]


def best(scores: Iterable[MetricScore]) -> MetricScore | None:
    """The one of the highest macro accuracy; of equals the earliest iteration's, and of these the one that goes on:
    GRPO's has to be worse than that of SFT to stay behind."""
    measured = [score for score in scores if score.value(MACRO_ACCURACY.name) is not None]

    def rank(score: MetricScore) -> tuple[float | None, int, int]:
        return score.value(MACRO_ACCURACY.name), -score.iteration, _CHECKPOINTS.index(score.checkpoint)

    return max(measured, key=rank, default=None)


def by_iteration(scores: Iterable[MetricScore], metric: str = MACRO_ACCURACY.name) -> dict[int, float]:
    """Each iteration's better checkpoint, in order; without those of which this was not measured (`unmeasured`)."""
    values: dict[int, float] = {}
    for score in sorted(scores, key=lambda score: score.iteration):
        value = score.value(metric)
        if value is not None:
            values[score.iteration] = max(value, values.get(score.iteration, value))
    return values


def unmeasured(scores: Iterable[MetricScore], metric: str, evaluated: Iterable[int]) -> list[int]:
    """Evaluated iterations that have no score by a metric, as an evaluation by a version that did not know it."""
    return sorted(set(evaluated) - by_iteration(scores, metric).keys())


def stopped_at(scores: Iterable[MetricScore], rule: EarlyStopping, newest_started: int) -> int | None:
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
