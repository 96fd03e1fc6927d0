"""The promotion gate: every bound, and that it sees what the gate of earlier versions did not."""

from __future__ import annotations

import pytest
from tests.support.cycle_documents import spec_with

from medgr2_api.presets import resolve
from medgr2_api.training_spec import ResolvedPromotion
from medgr2_jobs.evaluate.metrics import Interval
from medgr2_jobs.reward.promotion import gate

BOUNDS: ResolvedPromotion = resolve(spec_with()).reward_model.promotion
FINE = {"spearman": 0.9, "pairwise_accuracy": 0.9, "image_sensitivity": 0.9, "mae": 1.0}
ANSWERS = {"answer_auroc": 0.97, "answer_accuracy": 0.9, "image_sensitivity": 0.95}
SAME = dict.fromkeys(ANSWERS, Interval(0.0, -0.01, 0.01))


def failed(**changes):
    """The checks that fail, as (kind, metric), of a model that is fine but for these."""
    grades = {**FINE, **changes.pop("grades", {})}
    found = gate(grades, BOUNDS, ANSWERS, changes.pop("gains", SAME | changes))
    missed = [check for check in found.checks if not check.passed]
    assert found.passed is not bool(missed)
    assert all(check.metric in found.reason for check in missed)
    return [(check.kind, check.metric) for check in missed]


@pytest.mark.parametrize(
    ("grades", "missed"),
    [
        ({}, []),
        ({"spearman": 0.59}, [("least", "spearman")]),
        ({"pairwise_accuracy": 0.74}, [("least", "pairwise_accuracy")]),
        ({"image_sensitivity": 0.59}, [("least", "image_sensitivity")]),
        ({"mae": 4.1}, [("most", "mae")]),
        ({"mae": 3.9}, []),
    ],
)
def test_least_values_on_grades(grades, missed):
    assert failed(grades=grades) == missed
    assert failed(grades=grades, gains=None) == missed  # a first R has nothing else


def test_what_was_not_measurable_passes():
    found = gate({}, BOUNDS)
    assert found.passed
    assert [check.value for check in found.checks] == [None] * 4


@pytest.mark.parametrize("metric", ANSWERS)
@pytest.mark.parametrize(
    ("gain", "missed"),
    [
        (Interval(0.03, 0.01, 0.05), []),
        (Interval(-0.019, -0.029, -0.009), []),
        (Interval(-0.021, -0.029, -0.013), ["regression"]),
        (Interval(0.0, -0.031, 0.031), ["interval"]),
        (Interval(-0.04, -0.06, -0.02), ["regression", "interval"]),
    ],
)
def test_answers_are_compared_with_the_model_in_force(metric, gain, missed):
    assert failed(**{metric: gain}) == [(kind, metric) for kind in missed]


def test_the_bounds_of_the_gate_are_told():
    found = gate(FINE, BOUNDS, ANSWERS, SAME | {"answer_auroc": Interval(-0.04, -0.06, -0.02)})
    document = found.dump()
    assert document["gains"]["answer_auroc"] == {"value": -0.04, "low": -0.06, "high": -0.02}
    [regression, interval] = [check for check in document["checks"] if not check["passed"]]
    assert (regression["value"], regression["bound"]) == (0.97, pytest.approx(0.97 + 0.04 - 0.02))
    assert (interval["value"], interval["bound"]) == (-0.06, -0.03)
    assert found.reason == (
        "answer_auroc 0.970 misses its regression bound 0.990; "
        "answer_auroc may have fallen by 0.060 (lower end; at most 0.030)"
    )
