"""A metric is declared once and computed once; the rest follows."""

from __future__ import annotations

import csv

import pytest
from tests.support.rows import row_of

from medgr2_api import metrics
from medgr2_api.crd import schema_of
from medgr2_api.metrics import METRICS, Metric
from medgr2_api.scheduling import EarlyStopping
from medgr2_api.stage_contract import StageResult
from medgr2_api.status import CycleStatus, MetricScore
from medgr2_jobs.evaluate.metrics import WHOLE, ItemSet, Measurement, QuestionSet, measurements
from medgr2_jobs.report import markdown, tables
from medgr2_jobs.stages import measure
from medgr2_jobs.store.rows import Split
from medgr2_jobs.store.rows.evaluation import Prediction, Scoring
from medgr2_jobs.store.rows.prepared import Item
from medgr2_operator.plan.scores import by_iteration, scores_in, stopped_at
from medgr2_operator.runtime.metrics import _samples

ITEMS = [
    row_of(Item, item_id=f"q{n}", image_sha256=f"i{n}", modality="CT", options=("cyst", "mass"), answer_index=0)
    for n in range(4)
]
FIRST_OPTION = Metric("firstOption", "Share of the answers that name the first option, 0..1.", True, "first option")


def first_option(items: ItemSet, predictions: list[Prediction]) -> float:
    return sum(row.predicted == 0 for row in predictions) / len(items.items)


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, FIRST_OPTION.name, FIRST_OPTION)
    monkeypatch.setitem(WHOLE, FIRST_OPTION.name, first_option)


def measured(iteration: int, picks: list[int]) -> list[Measurement]:
    answers = [
        row_of(Prediction, item_id=item.item_id, checkpoint="sft", scoring=Scoring.OPTION_LOGPROB, predicted=pick,
               correct=pick == 0, option_logprobs=(-1.0, -2.0))
        for item, pick in zip(ITEMS, picks, strict=True)
    ]  # fmt: skip
    questions = QuestionSet(Split.VALIDATION, "")
    return measurements(ItemSet(ITEMS), answers, iteration=iteration, questions=questions, seed=1, chance=False)


def scores(iteration: int, picks: list[int]) -> list[MetricScore]:
    """As the operator reads them from what the stage says."""
    return scores_in(iteration, StageResult(exit_code=0, metrics=measure._counters(measured(iteration, picks))))


@pytest.mark.usefixtures("declared")
def test_a_new_metric_is_in_counters_and_status() -> None:
    assert measure._counters(measured(1, [0, 0, 0, 1]))["validation/sft/firstOption"] == 0.75
    [score] = scores(1, [0, 0, 0, 1])
    assert score.value("firstOption") == 0.75
    assert score.dump()["firstOption"] == 0.75
    assert schema_of(CycleStatus)["properties"]["best"]["properties"]["firstOption"] == {
        "description": FIRST_OPTION.sentence, "type": "number", "format": "double",
    }  # fmt: skip


@pytest.mark.usefixtures("declared")
def test_a_new_metric_decides() -> None:
    found = [*scores(1, [0, 0, 0, 0]), *scores(2, [0, 0, 0, 0])]
    assert by_iteration(found, "firstOption") == {1: 1.0, 2: 1.0}
    assert stopped_at(found, EarlyStopping(metric="firstOption", patience=1), newest_started=2) == 2
    assert "firstOption" in schema_of(EarlyStopping)["properties"]["metric"]["enum"]


@pytest.mark.usefixtures("declared")
def test_a_new_metric_is_exported() -> None:
    status = CycleStatus(scores=scores(1, [0, 0, 0, 1]))
    assert ("medgr2_cycle_score_ratio", ("sft", "1", "firstOption"), 0.75) in list(_samples(status, 1))


@pytest.mark.usefixtures("declared")
def test_a_new_metric_has_its_column_in_the_report() -> None:
    headline = tables.headline(measured(1, [0, 0, 0, 1]), {})
    assert headline[0].metrics == {"macro": 0.75, "first option": 0.75}
    [row] = csv.DictReader(tables.to_csv(headline).splitlines())
    assert (row["macro"], row["first option"], row["n"]) == ("0.75", "0.75", "4")
    said = markdown.report(tables.CycleTables("c", 1, {}, [], headline, [], [], [], []), [])
    assert "| macro | first option | written |" in said


def test_what_is_not_declared_decides_nothing() -> None:
    assert "firstOption" not in measure._counters(measured(1, [0, 0, 0, 1]))
    with pytest.raises(ValueError, match="'macroAccuracy', 'microAccuracy'"):
        EarlyStopping(metric="firstOption")
    with pytest.raises(ValueError, match="'macroAccuracy', 'microAccuracy'"):
        EarlyStopping(metric="macroF1")  # it is measured, and has no interval to decide by


def test_every_metric_that_is_measured_is_declared() -> None:
    items = [
        row_of(Item, item_id=f"q{n}", image_sha256=f"i{n}", modality="CT", options=("cyst", "mass"), answer_index=n % 2)
        for n in range(20)
    ]
    rows = [
        row_of(Prediction, item_id=item.item_id, checkpoint="sft", scoring=scoring, predicted=0,
               correct=item.answer_index == 0, option_logprobs=(-1.0, -2.0) if scoring == "option_logprob" else ())
        for item in items
        for scoring in Scoring
    ]  # fmt: skip
    questions = QuestionSet(Split.TEST, "b")
    found = measurements(ItemSet(items), rows, iteration=1, questions=questions, seed=1, chance=False)
    assert {row.metric for row in found} == METRICS.keys()
    assert {metric.name for metric in metrics.deciding()} == {"macroAccuracy", "microAccuracy"}


def test_a_status_written_before_is_read() -> None:
    stored = {"iteration": 1, "checkpoint": "sft", "split": "validation", "macroAccuracy": 0.5, "microAccuracy": 0.6}
    score = MetricScore.model_validate(stored)
    assert (score.value("macroAccuracy"), score.value("microAccuracy"), score.dump()) == (0.5, 0.6, stored)
    with pytest.raises(ValueError, match="macroAccuracy"):
        MetricScore.model_validate({**stored, "macroAccuracy": "high"})
