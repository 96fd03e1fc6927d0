"""The promotion gate: every bound, and that it sees what the gate of earlier versions did not."""

from __future__ import annotations

import pytest
from tests.support.cycle_documents import spec_with

from medgr2_api.presets import resolve
from medgr2_api.reward_model import ResolvedPromotion
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


@pytest.mark.parametrize(
    ("metric", "gain", "missed"),
    [
        *((metric, Interval(0.03, 0.01, 0.05), []) for metric in ANSWERS),
        ("answer_auroc", Interval(0.0, -0.049, 0.049), []),
        ("answer_auroc", Interval(-0.001, -0.002, 0.0), ["gain"]),
        ("answer_accuracy", Interval(-0.019, -0.049, 0.011), []),
        ("answer_accuracy", Interval(-0.021, -0.029, -0.013), ["regression"]),
        ("image_sensitivity", Interval(-0.021, -0.029, -0.013), ["regression"]),
        *((metric, Interval(0.0, -0.051, 0.051), ["interval"]) for metric in ANSWERS),
        ("answer_auroc", Interval(-0.04, -0.06, -0.02), ["gain", "interval"]),
        ("answer_accuracy", Interval(-0.04, -0.06, -0.02), ["regression", "interval"]),
    ],
)
def test_answers_are_compared_with_the_model_in_force(metric, gain, missed):
    assert failed(**{metric: gain}) == [(kind, metric) for kind in missed]


def test_the_bounds_of_the_gate_are_told():
    found = gate(FINE, BOUNDS, ANSWERS, SAME | {"answer_auroc": Interval(-0.04, -0.06, -0.02)})
    document = found.dump()
    assert document["gains"]["answer_auroc"] == {"value": -0.04, "low": -0.06, "high": -0.02}
    [lost, interval] = [check for check in document["checks"] if not check["passed"]]
    assert (lost["value"], lost["bound"]) == (0.97, pytest.approx(0.97 + 0.04))
    assert (interval["value"], interval["bound"]) == (-0.06, -0.05)
    assert found.reason == (
        "answer_auroc 0.970 misses its gain bound 1.010; "
        "answer_auroc may have fallen by 0.060 (lower end; at most 0.050)"
    )


#: Quickstart, development seed: R⁽⁰⁾, and R trained on the same D_grade for twice as many steps, with its rows in two
#: orders; held-out grades, and gains over R⁽⁰⁾ on the validation questions. Of 1,000 fresh questions they answer
#: 22 and 48 fewer rightly (docs/measurements.md, "The retrained reward model"; `make bench NAME=reward_gate`).
FIRST = {"spearman": 0.7181, "pairwise_accuracy": 0.9510, "image_sensitivity": 0.9746, "mae": 2.467}
BY_HEART = [
    (
        {"spearman": 0.7343, "pairwise_accuracy": 0.9575, "image_sensitivity": 0.9831, "mae": 0.965},
        {"answer_auroc": 0.9642, "answer_accuracy": 0.8958, "image_sensitivity": 0.9831},
        {
            "answer_auroc": Interval(-0.0086, -0.0254, 0.0062),
            "answer_accuracy": Interval(0.0042, -0.0292, 0.0375),
            "image_sensitivity": Interval(0.0085, -0.0119, 0.0362),
        },
        {("gain", "answer_auroc")},
    ),
    (
        {"spearman": 0.7161, "pairwise_accuracy": 0.9501, "image_sensitivity": 0.9562, "mae": 1.144},
        {"answer_auroc": 0.9483, "answer_accuracy": 0.8583, "image_sensitivity": 0.9562},
        {
            "answer_auroc": Interval(-0.0245, -0.0420, -0.0084),
            "answer_accuracy": Interval(-0.0333, -0.0667, 0.0),
            "image_sensitivity": Interval(-0.0184, -0.0473, 0.0121),
        },
        {("gain", "answer_auroc"), ("regression", "answer_accuracy"), ("interval", "answer_accuracy")},
    ),
]


def passed_before(new, old):
    """The gate of earlier versions: the order of the grades against the model in force, mean absolute error in R's
    range of 16."""
    kept = all(new[name] >= old[name] - 0.02 for name in ("spearman", "pairwise_accuracy", "image_sensitivity"))
    return kept and new["mae"] <= old["mae"] + 0.02 * 16


@pytest.mark.parametrize(("grades", "answers", "gains", "missed"), BY_HEART)
def test_a_model_that_learnt_its_images_by_heart_passed_before_and_does_not_now(grades, answers, gains, missed):
    assert passed_before(grades, FIRST)
    found = gate(grades, BOUNDS, answers, gains)
    assert {(check.kind, check.metric) for check in found.checks if not check.passed} == missed
