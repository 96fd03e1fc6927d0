"""Scores and early stopping."""

from __future__ import annotations

import pytest

from medgr2_api.scheduling import EarlyStopping
from medgr2_api.stage_contract import StageResult
from medgr2_api.status import MetricScore
from medgr2_operator.plan.scores import best, by_iteration, scores_in, stopped_at


def scores(*values: float) -> list[MetricScore]:
    return [MetricScore.of(i, "grpo" if i else "base", {"macroAccuracy": v}) for i, v in enumerate(values)]


def test_read_from_an_evaluation() -> None:
    result = StageResult(
        exit_code=0,
        metrics={
            "validation/sft/macroAccuracy": 0.5,
            "validation/grpo/macroAccuracy": 0.6,
            "validation/grpo/microAccuracy": 0.7,
            "omnimed/grpo/macroAccuracy": 0.99,
        },
    )
    assert scores_in(2, result) == [
        MetricScore.of(2, "sft", {"macroAccuracy": 0.5}),
        MetricScore.of(2, "grpo", {"macroAccuracy": 0.6, "microAccuracy": 0.7}),
    ]


def test_best_is_the_highest_then_the_earliest() -> None:
    assert best([]) is None
    highest = best(scores(0.5, 0.7, 0.7))
    assert highest is not None
    assert highest.iteration == 1


def test_an_iteration_is_as_good_as_its_better_checkpoint() -> None:
    both = [
        MetricScore.of(1, "sft", {"macroAccuracy": 0.6, "microAccuracy": 0.4}),
        MetricScore.of(1, "grpo", {"macroAccuracy": 0.5}),
    ]
    assert by_iteration(both) == {1: 0.6}
    assert by_iteration(both, "microAccuracy") == {1: 0.4}


@pytest.mark.parametrize(
    ("values", "patience", "stops"),
    [
        ((), 1, None),
        ((0.5,), 1, None),
        ((0.5, 0.6), 1, None),
        ((0.5, 0.5), 1, 1),
        ((0.5, 0.501), 1, 1),  # less than minDelta
        ((0.5, 0.502), 1, None),  # exactly minDelta counts
        ((0.5, 0.4), 2, None),
        ((0.5, 0.4, 0.45), 2, 2),  # better than before, not than the best
        ((0.5, 0.4, 0.6, 0.6), 2, None),
        ((0.5, 0.6, 0.6, 0.6), 2, 3),
    ],
)
def test_early_stopping(values: tuple[float, ...], patience: int, stops: int | None) -> None:
    rule = EarlyStopping(patience=patience)
    assert stopped_at(scores(*values), rule, newest_started=len(values) - 1) == stops


def test_what_has_started_is_not_cut_off() -> None:
    values = scores(0.5, 0.5, 0.5)
    assert stopped_at(values[:2], EarlyStopping(patience=1), newest_started=2) is None
    assert stopped_at(values, EarlyStopping(patience=1), newest_started=2) == 2


def test_no_delta_still_asks_for_an_improvement() -> None:
    assert stopped_at(scores(0.5, 0.5), EarlyStopping(patience=1, min_delta=0), 1) == 1
