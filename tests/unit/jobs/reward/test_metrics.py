"""Figures of R on held-out rows, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from tests.support.rows import row_of

from medgr2_jobs.evaluate.rank_statistics import auroc
from medgr2_jobs.reward.metrics import reward_metrics
from medgr2_jobs.store.rows.prepared import Grade, GradedRow


def row(item, grade, target, response="r"):
    return row_of(GradedRow, item_id=item, grade=Grade(grade), target=target, response=response)


def figures(rows, scores):
    return reward_metrics(rows, [row.item_id for row in rows], scores, good=6.0)


def test_by_hand():
    rows = [
        row("a", "original", 10.0),
        row("a", "irrelevant", -6.0, "w"),
        row("a", "imageMismatch", -6.0),
        row("b", "original", 10.0),
        row("b", "imageMismatch", -6.0),
        row("c", "imageMismatch", -6.0, "text without an original"),
    ]
    scores = np.array([8.0, -2.0, 9.0, 5.0, 5.0, 0.0])
    found = figures(rows, scores)
    assert found["n"] == 6
    assert found["pairwise_accuracy"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert found["image_sensitivity"] == pytest.approx((0 + 0.5) / 2)
    assert found["mae_original"] == pytest.approx(3.5)
    assert found["mae_irrelevant"] == pytest.approx(4.0)
    assert found["mae_imageMismatch"] == pytest.approx((15 + 11 + 6) / 3)
    assert found["mae"] == pytest.approx((3.5 + 4 + 32 / 3) / 3)
    assert found["auroc"] == pytest.approx(roc_auc_score([1, 0, 0, 1, 0, 0], scores))


def test_a_perfect_and_a_constant_model():
    rows = [row(i, g, t) for i in "ab" for g, t in (("original", 10.0), ("perturbed", 6.0), ("irrelevant", -6.0))]
    perfect = figures(rows, np.array([r.target for r in rows]))
    assert (perfect["spearman"], perfect["pairwise_accuracy"], perfect["auroc"], perfect["mae"]) == (1, 1, 1, 0)
    constant = figures(rows, np.full(6, 2.0))
    assert (constant["spearman"], constant["pairwise_accuracy"], constant["auroc"]) == (0, 0.5, 0.5)


def test_what_cannot_be_measured_is_left_out():
    assert set(figures([row("a", "original", 10.0)], np.array([1.0]))) == {"n", "mae_original", "mae"}


def test_auroc_is_sklearns():
    chance = np.random.default_rng(0)
    scores, positive = chance.integers(0, 6, 50).astype(float), chance.random(50) < 0.4
    assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))
