"""Figures from hand-made predictions, and whether the intervals keep their word."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score
from tests.support.rows import row_of

from medgr2_jobs.evaluate import metrics
from medgr2_jobs.evaluate.metrics import Measurement, QuestionSet
from medgr2_jobs.store.rows import Split
from medgr2_jobs.store.rows.evaluation import Prediction, Scoring
from medgr2_jobs.store.rows.prepared import Item

OPTIONS = ["cyst", "mass", "nodule", "plaque"]


def item(number: int, image: str, modality: str, gold: int, kind: str = "finding") -> Item:
    return row_of(Item, item_id=f"q{number}", image_sha256=image, modality=modality, question_type=kind,
                  options=OPTIONS, answer_index=gold)  # fmt: skip


def prediction(entry: Item, predicted: int | None, scoring: Scoring = Scoring.OPTION_LOGPROB) -> Prediction:
    scores = [0.0 if index == predicted else -3.0 for index in range(4)]
    return row_of(Prediction, item_id=entry.item_id, checkpoint="sft", scoring=scoring, predicted=predicted,
                  correct=predicted == entry.answer_index, option_logprobs=scores)  # fmt: skip


def table(rows: list[Measurement]) -> dict[tuple[str, str, str], Measurement]:
    return {(row.scoring, row.slice, row.metric): row for row in rows}


def measure(items: list[Item], predictions: list[Prediction], *, chance: bool = False) -> list[Measurement]:
    questions = QuestionSet(Split.TEST, "b")
    found = metrics.ItemSet(items)
    return metrics.measurements(found, predictions, iteration=1, questions=questions, seed=1, chance=chance)


def test_figures_of_six_questions() -> None:
    items = [
        item(0, "i1", "CT", 0), item(1, "i1", "CT", 1, "count"), item(2, "i2", "CT", 2), item(3, "i2", "CT", 3),
        item(4, "i3", "MRI", 0), item(5, "i4", "MRI", 1, "count"),
    ]  # fmt: skip
    rows = [prediction(entry, pick) for entry, pick in zip(items, [0, 1, 2, 0, 1, 0], strict=True)]
    rows += [
        prediction(entry, pick, Scoring.GREEDY) for entry, pick in zip(items, [0, None, 2, 3, 0, None], strict=True)
    ]
    result = measure(items, rows, chance=True)
    found = {key: (row.value, row.n) for key, row in table([r for r in result if r.checkpoint == "sft"]).items()}
    logprob = {key[1:]: value for key, value in found.items() if key[0] == "option_logprob"}
    assert logprob == {
        ("all", "microAccuracy"): (0.5, 6),
        ("all", "macroAccuracy"): (0.375, 6),  # (3/4 + 0/2) / 2
        ("modality=CT", "microAccuracy"): (0.75, 4),
        ("modality=MRI", "microAccuracy"): (0.0, 2),
        ("question_type=count", "microAccuracy"): (0.5, 2),
        ("question_type=count", "macroAccuracy"): (0.5, 2),  # (1/1 + 0/1) / 2
        ("question_type=finding", "microAccuracy"): (0.5, 4),
        ("question_type=finding", "macroAccuracy"): (round(1 / 3, 6), 4),  # (2/3 + 0/1) / 2
        ("all", "macroF1"): (round((0.4 + 0.5 + 1 + 0) / 4, 6), 6),
    }
    greedy = {key[1:]: value for key, value in found.items() if key[0] == "greedy"}
    assert greedy["all", "microAccuracy"] == (round(4 / 6, 6), 6)
    assert greedy["all", "parseFailures"] == (round(2 / 6, 6), 6)
    assert greedy["question_type=count", "parseFailures"] == (1.0, 2)
    assert greedy["modality=CT", "parseFailures"] == (0.25, 4)
    chance = [r for r in result if r.condition == "chance"]
    assert {row.value for row in chance} == {0.25}
    assert all(row.checkpoint == "base" for row in chance)
    for row in result:
        assert (row.iteration, row.split, row.benchmark) == (1, "test", "b")
        if row.metric in ("macroF1", "auroc"):
            assert row.low is row.high is None
        else:
            assert row.low <= row.value <= row.high


def many(count: int = 400, questions: int = 4) -> list[Item]:
    random = np.random.default_rng(5)
    return [
        item(n, f"i{n // questions}", f"M{n // questions % 3}", int(random.integers(4)), f"t{n % 4}")
        for n in range(count)
    ]


def test_an_oracle_scores_one_and_a_blind_model_chance() -> None:
    items = many()
    random = np.random.default_rng(6)
    for picks, low, high in (
        ([entry.answer_index for entry in items], 1.0, 1.0),
        (random.integers(4, size=400).tolist(), 0.2, 0.3),
    ):
        rows = [prediction(entry, pick) for entry, pick in zip(items, picks, strict=True)]
        found = table(measure(items, rows))
        accuracy = found["option_logprob", "all", "microAccuracy"]
        assert low <= accuracy.value <= high
        assert found["option_logprob", "all", "auroc"].value == pytest.approx(1.0 if low == 1.0 else 0.5, abs=0.08)
        if low == 1.0:
            assert found["option_logprob", "all", "macroF1"].value == 1.0
            assert accuracy.low == pytest.approx(0.025 ** (1 / 100), abs=1e-6)  # exact bound of 100 right images
            assert accuracy.high == 1.0


def test_f1_and_auroc_agree_with_scikit_learn() -> None:
    items = many()
    random = np.random.default_rng(7)
    scores = random.normal(size=(400, 4)) + 0.8 * np.eye(4)[[entry.answer_index for entry in items]]
    picks = scores.argmax(1)
    gold = np.array([entry.answer_index for entry in items])
    found = metrics.ItemSet(items)
    rows = [
        row_of(Prediction, scoring=Scoring.OPTION_LOGPROB, predicted=pick, option_logprobs=logprobs)
        for pick, logprobs in zip(picks.tolist(), scores.tolist(), strict=True)
    ]
    assert found.macro_f1(rows) == pytest.approx(f1_score(gold, picks, average="macro"))
    probability = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    areas = [roc_auc_score(gold == index, probability[:, index]) for index in range(4)]
    assert found.auroc(rows) == pytest.approx(np.mean(areas))
    assert metrics.ItemSet(items[:8]).auroc(rows[:8]) is None  # too few questions


def simulate(random: np.random.Generator, images: int, questions: int) -> tuple[np.ndarray, list[str]]:
    """Answers whose truth is 0.6: each image has its own difficulty, so its questions go together."""
    difficulty = random.beta(1.2, 0.8, size=images)
    right = random.random((images, questions)) < difficulty[:, None]
    return right.astype(float).ravel(), [f"i{n // questions}" for n in range(images * questions)]


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(11)
    covered = ignoring_images = 0
    for trial in range(250):
        right, images = simulate(random, 60, 6)
        interval = metrics.cluster_mean(right, images, seed=trial)
        covered += interval.low <= 0.6 <= interval.high
        alone = metrics.cluster_mean(right, [str(n) for n in range(len(right))], seed=trial)
        ignoring_images += alone.low <= 0.6 <= alone.high
    assert 0.91 <= covered / 250 <= 0.98  # about 0.94 is usual for the percentile interval; standard error 0.014
    assert ignoring_images / 250 < 0.87  # what treating questions as independent would have claimed to be 95 %


def test_macro_intervals_cover_too() -> None:
    random = np.random.default_rng(12)
    covered = 0
    for trial in range(200):
        right, images = simulate(random, 60, 4)
        items = [item(n, image, f"M{int(image[1:]) % 3}", 0) for n, image in enumerate(images)]
        share = metrics.ItemSet(items).shares(right[None], seed=trial)[0][0]
        covered += share.macro.low <= 0.6 <= share.macro.high
    assert 0.89 <= covered / 200 <= 0.985


def test_the_item_set_and_the_plain_bootstrap_agree_and_are_seeded() -> None:
    right, images = simulate(np.random.default_rng(13), 50, 4)
    items = [item(n, image, "CT", 0) for n, image in enumerate(images)]
    share = metrics.ItemSet(items).shares(right[None], seed=3)[0][0]
    plain = metrics.cluster_mean(right, images, seed=3)
    assert (share.micro.low, share.micro.high) == pytest.approx((plain.low, plain.high))
    assert (share.macro.low, share.macro.high) == pytest.approx((plain.low, plain.high))  # one modality
    assert metrics.cluster_mean(right, images, seed=3) == plain
    spread = [metrics.cluster_mean(right, images, seed=seed) for seed in range(4, 9)]
    assert len({(interval.low, interval.high) for interval in spread}) > 1


def test_no_values_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        metrics.cluster_mean([], [], seed=0)
