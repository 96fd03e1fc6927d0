"""Selection strategies, as functions of a batch."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from medgr2_api.curation import (
    ResolvedCuration,
    ResolvedSelection,
    SelectAll,
    SelectByPrecision,
    SelectByThreshold,
    SelectionStrategy,
    SelectRandomK,
    SelectTopK,
)
from medgr2_jobs.curate.selection import CandidateBatch, fit_threshold, select
from medgr2_jobs.errors import ConfigError, DataError
from medgr2_jobs.store.rows.prepared import Grade
from medgr2_jobs.store.rows.training import CalibrationRow

SCORES = {"a": 9.0, "b": 5.0, "c": 3.0, "d": -6.0}


def batch(**changes: Any) -> CandidateBatch:
    fields = {"ids": list("abcd"), "scores": SCORES, "calibration": None, "seed": 1, **changes}
    return CandidateBatch(**fields)


def graded(*rows: tuple[float, float]) -> list[CalibrationRow]:
    return [CalibrationRow(str(n), Grade.ORIGINAL, target, score) for n, (target, score) in enumerate(rows)]


ALL = SelectAll(strategy=SelectionStrategy.ALL)


def above(threshold: float) -> SelectByThreshold:
    return SelectByThreshold(strategy=SelectionStrategy.THRESHOLD, threshold=threshold)


def fitted(precision: float) -> SelectByPrecision:
    return SelectByPrecision(strategy=SelectionStrategy.FITTED_PRECISION, precision=precision)


def top(k: int) -> SelectTopK:
    return SelectTopK(strategy=SelectionStrategy.TOP_K, k=k)


def at_random(k: int) -> SelectRandomK:
    return SelectRandomK(strategy=SelectionStrategy.RANDOM_K, k=k)


def test_every_strategy_of_the_api_is_there() -> None:
    every: list[ResolvedSelection] = [ALL, above(3.0), fitted(0.5), top(2), at_random(2)]
    assert {one.strategy for one in every} == set(SelectionStrategy)
    for selection in every:
        assert select(selection, batch(calibration=graded((10, 4), (-6, -3)))).passed


def test_all() -> None:
    assert select(ALL, batch(scores={})).passed == list("abcd")


def test_threshold_is_strict() -> None:
    found = select(above(3.0), batch())
    assert found.passed == ["a", "b"]
    assert found.reason == "below_threshold"
    assert found.counters == {"threshold": 3.0}


def test_top_k_prefers_the_best_and_says_how_many() -> None:
    found = select(top(2), batch(ids=list("dbca")))
    assert (found.passed, found.limit, found.reason) == (list("abcd"), 2, "not_in_top_k")
    assert select(top(2), batch(scores={"b": 1.0})).passed == ["b"]


def test_top_k_ties_do_not_depend_on_the_order() -> None:
    tied = dict.fromkeys("abcd", 1.0)
    choices = [select(top(2), batch(ids=ids, scores=tied)).passed for ids in (list("abcd"), list("dcba"))]
    assert choices[0] == choices[1] == list("abcd")


def test_random_k_is_seeded_and_needs_no_scores() -> None:
    ids = [str(number) for number in range(200)]
    chosen = at_random(50)
    found = [select(chosen, batch(ids=ids, scores={}, seed=seed)) for seed in (1, 1, 2)]
    assert {one.limit for one in found} == {50}
    orders = [one.passed for one in found]
    assert orders[0] == orders[1] != orders[2]
    assert all(sorted(order) == sorted(ids) for order in orders)
    assert select(chosen, batch(ids=ids[::-1], scores={}, seed=1)).passed == orders[0]


@pytest.mark.parametrize(
    ("strategy", "parameter"),
    [("Threshold", "threshold"), ("FittedPrecision", "precision"), ("TopK", "k"), ("RandomK", "k")],
)
def test_missing_parameter(strategy: str, parameter: str) -> None:
    with pytest.raises(ValidationError, match=rf"{parameter}\n  Field required"):
        ResolvedCuration.model_validate({"selection": {"strategy": strategy}})
    with pytest.raises(ValidationError, match="strategy\n  Field required"):
        ResolvedCuration.model_validate({"selection": {}})


def test_fitted_precision_finds_the_smallest_threshold() -> None:
    rows = graded((10, 9), (6, 8), (10, 7), (0, 5), (10, 4), (-6, 1), (-6, 0))
    assert fit_threshold(rows, 0.99) == (6.0, 1.0)  # half-way between 7 and 5
    assert fit_threshold(rows, 0.8) == (2.5, 0.8)  # 4 of 5 above it
    threshold, share = fit_threshold(rows, 0.5)
    assert share == pytest.approx(4 / 7)
    assert -0.001 < threshold < 0  # right below the lowest score: nothing is known further down


def test_fitted_precision_out_of_reach_takes_the_nearest() -> None:
    rows = graded((0, 9), (10, 8), (10, 7), (0, 5))
    assert fit_threshold(rows, 0.99) == (6.0, pytest.approx(2 / 3))
    found = select(fitted(0.99), batch(calibration=rows))
    assert found.passed == ["a"]
    assert found.counters["precision_reached"] == 0
    assert found.counters["calibration_precision"] == pytest.approx(2 / 3)
    assert found.counters["threshold"] == 6.0


def test_equal_scores_are_never_divided() -> None:
    rows = graded((10, 5), (0, 5), (10, 5), (0, 2))
    threshold, share = fit_threshold(rows, 0.6)
    assert (threshold, share) == (3.5, pytest.approx(2 / 3))


def test_fitted_precision_needs_good_rows() -> None:
    chosen = fitted(0.9)
    with pytest.raises(ConfigError, match="no input 'reward'"):
        select(chosen, batch())
    for rows in ([], graded((0, 1), (-6, 2)), graded((10, math.nan), (6, math.inf))):
        with pytest.raises(DataError, match="validationFraction"):
            select(chosen, batch(calibration=rows))


@given(
    st.lists(st.tuples(st.sampled_from([10.0, 6.0, 0.0, -6.0]), st.floats(-6, 10)), min_size=1, max_size=40),
    st.floats(0.05, 0.99),
)
def test_fitted_precision_keeps_its_word(rows: list[tuple[float, float]], precision: float) -> None:
    threshold, share = fit_threshold(graded(*rows), precision)

    def measured(limit: float) -> float:
        above = [target >= 6 for target, score in rows if score > limit]
        return sum(above) / len(above) if above else 0.0

    assert measured(threshold) == pytest.approx(share)
    lower = [score for _, score in rows if score <= threshold]
    reachable = any(measured(math.nextafter(score, -math.inf)) >= precision for _, score in rows)
    assert (share >= precision) == reachable
    if reachable:  # no smaller one will do
        assert all(measured(math.nextafter(score, -math.inf)) < precision for score in lower)
