"""How R answers validation questions: measures by hand, and paired intervals against a bootstrap written out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from tests.support.rows import row_of

from medgr2_jobs.reward.validation_answers import ValidationAnswers
from medgr2_jobs.store.rows.prepared import Grade, GradedRow
from medgr2_jobs.store.rows.training import RewardAnswer


def answering(scores: list[list[float]], gold: list[int], images: list[str] | None = None) -> ValidationAnswers:
    return ValidationAnswers(
        tuple(images or [f"i{index}" for index in range(len(gold))]), tuple(map(tuple, scores)), tuple(gold)
    )


def drawn(seed: int, shift: float, count: int = 60) -> ValidationAnswers:
    """Questions with 3 or 4 options, two on each image, whose right option scores about `shift` higher."""
    chance, scores = np.random.default_rng(seed), []
    gold = [index % 3 for index in range(count)]
    for right in gold:
        options = chance.integers(-6, 10, size=3 + right % 2).astype(float)  # whole numbers: there are ties
        options[right] += shift
        scores.append(options.tolist())
    return answering(scores, gold, [f"i{index // 2}" for index in range(count)])


def test_measures_by_hand():
    found = answering([[5, 1, 0], [2, 2], [1, 3, 3, 0]], [0, 1, 0]).measures()
    assert found["answer_accuracy"] == pytest.approx((1 + 0.5 + 0) / 3)
    right, values = [1, 0, 0, 0, 1, 1, 0, 0, 0], [5, 1, 0, 2, 2, 1, 3, 3, 0]
    assert found["answer_auroc"] == pytest.approx(roc_auc_score(right, values))
    assert "image_sensitivity" not in found


def test_image_sensitivity_is_paired_by_the_image_of_the_question():
    rows = [
        row_of(GradedRow, item_id="a", image_sha256="A", response="r", grade=Grade.ORIGINAL),
        row_of(GradedRow, item_id="a", image_sha256="B", response="r", grade=Grade.IMAGE_MISMATCH),
        row_of(GradedRow, item_id="a", image_sha256="C", response="r", grade=Grade.IMAGE_MISMATCH),
        row_of(GradedRow, item_id="a", image_sha256="C", response="other words", grade=Grade.IMAGE_MISMATCH),
    ]
    found = ValidationAnswers.of([], rows, np.array([5.0, 1.0, 5.0, 9.0]))
    assert found.pair_images == ("A", "A")
    assert found.measures() == {"image_sensitivity": 0.75}
    blind = ValidationAnswers.of([], rows, np.array([5.0, 5.0, 6.0, 0.0]))
    assert blind.gain_over(found)["image_sensitivity"].value == pytest.approx(0.25 - 0.75)


def test_rows_of_the_table_are_read():
    rows = [row_of(RewardAnswer, item_id="a", image_sha256="A", answer_index=1, option_scores=(0.0, 4.0))]
    assert ValidationAnswers.of(rows, [], np.zeros(0)).measures() == {"answer_auroc": 1.0, "answer_accuracy": 1.0}


def test_gains_are_paired_differences_with_images_drawn_together():
    """Against the plain way: draw images, take all their questions as often, compute both AUROCs."""
    old, new = drawn(1, 3.0), drawn(2, 6.0)
    gain = new.gain_over(old)
    measures = (new.measures(), old.measures())
    chance = np.random.default_rng(5)
    sampled: dict[str, list[float]] = {"answer_auroc": [], "answer_accuracy": []}
    names = sorted(set(new.images))
    for _ in range(1500):
        picks = chance.integers(len(names), size=len(names))
        rows = [row for pick in picks for row, image in enumerate(new.images) if image == names[pick]]
        both = [
            answering([list(of.scores[row]) for row in rows], [of.gold[row] for row in rows]).measures()
            for of in (new, old)
        ]
        for name, values in sampled.items():
            values.append(both[0][name] - both[1][name])
    for name, values in sampled.items():
        assert gain[name].value == pytest.approx(measures[0][name] - measures[1][name])
        low, high = np.quantile(values, (0.025, 0.975))
        assert gain[name].low == pytest.approx(low, abs=0.02)
        assert gain[name].high == pytest.approx(high, abs=0.02)


def test_a_model_against_itself_has_gained_nothing_for_sure():
    one = drawn(1, 3.0)
    assert all(tuple(gain) == (0, 0, 0) for gain in one.gain_over(one).values())


def test_ties_count_half_in_every_resample():
    """One image only: every resample is the whole, so the interval is the difference itself."""
    gold, images = [0, 1], ["i", "i"]
    tied, sure = answering([[2, 2, 1], [0, 2, 2]], gold, images), answering([[3, 2, 1], [0, 3, 2]], gold, images)
    gain = sure.gain_over(tied)["answer_auroc"]
    assert gain.low == gain.high == pytest.approx(gain.value)
    assert gain.value == pytest.approx(0.25)


def test_pairing_counts():
    """Two models that err on the same questions differ for sure, however much accuracy varies between images."""
    old = drawn(1, 4.0)
    better = ValidationAnswers(old.images, tuple((*row[:1], *(value - 1 for value in row[1:])) for row in old.scores),
                               tuple(0 for _ in old.gold))  # fmt: skip
    worse = ValidationAnswers(old.images, old.scores, better.gold)
    paired = better.gain_over(worse)["answer_auroc"]
    assert paired.low > 0, paired
    assert paired.high - paired.low < 0.1
