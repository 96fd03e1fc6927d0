"""How good R is on graded rows that it did not see, and whether a retrained R may replace the old one (DECISIONS 7)."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from medgr2_api.training_spec import Promotion

from ..evaluate.rank_statistics import auroc, spearman
from .model import SCORE_MAX, SCORE_MIN

ORIGINAL, MISMATCH = "original", "imageMismatch"
#: metric → the field of `rewardModel.promotion` that sets its least value
THRESHOLDS = {
    "spearman": "min_spearman",
    "pairwise_accuracy": "min_pairwise_accuracy",
    "image_sensitivity": "min_image_sensitivity",
}


def reward_metrics(
    rows: Sequence[Mapping[str, Any]], scores: np.ndarray, good: float, *, group: str = "item_id"
) -> dict[str, float]:
    """Figures of one R on graded rows. What the rows do not allow to measure is left out.

    Args:
        rows: N rows of table `grades` or `preferences`: target, grade and `group`; response for image sensitivity.
        scores: (N,) R's scores.
        good: least target of a good row.
        group: column that tells which rows answer the same question.

    Returns:
        n; spearman (rank correlation of score and target); pairwise_accuracy (share of same-question pairs of
        different target in the right order, ties half); auroc (good against the rest); image_sensitivity (share of
        original texts that score higher with their own image than with another, ties half); mae_<grade> and their
        mean over grades, mae.
    """
    targets = np.array([row["target"] for row in rows], dtype=np.float64)
    found: dict[str, float] = {"n": float(len(rows))}
    if len(set(targets)) > 1:
        varies = len(set(scores.tolist())) > 1
        found["spearman"] = spearman(scores, targets) if varies else 0.0
    members: dict[Any, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        members[row[group]].append(index)
    pairs = [
        (a, b) if targets[a] > targets[b] else (b, a)
        for indices in members.values()
        for a, b in itertools.combinations(indices, 2)
        if targets[a] != targets[b]
    ]
    if pairs:
        found["pairwise_accuracy"] = _higher_first(scores, pairs)
    is_good = targets >= good
    if is_good.any() and not is_good.all():
        found["auroc"] = auroc(scores, is_good)
    own = {(row[group], row["response"]): index for index, row in enumerate(rows) if row["grade"] == ORIGINAL}
    swapped = [
        (own[row[group], row["response"]], index)
        for index, row in enumerate(rows)
        if row["grade"] == MISMATCH and (row[group], row["response"]) in own
    ]
    if swapped:
        found["image_sensitivity"] = _higher_first(scores, swapped)
    grades = sorted({row["grade"] for row in rows})
    for grade in grades:
        chosen = np.array([row["grade"] == grade for row in rows])
        found[f"mae_{grade}"] = float(np.abs(scores - targets)[chosen].mean())
    if grades:
        found["mae"] = float(np.mean([found[f"mae_{grade}"] for grade in grades]))
    return found


def _higher_first(scores: np.ndarray, pairs: Sequence[tuple[int, int]]) -> float:
    """Share of pairs whose first scores higher than its second; ties count half."""
    first, second = np.array(pairs).T
    return float(np.mean((scores[first] > scores[second]) + 0.5 * (scores[first] == scores[second])))


@dataclass(frozen=True)
class Gate:
    """Whether a reward model passed, and every check that was made; the content of `gate.json`."""

    passed: bool
    checks: list[dict[str, Any]] = field(default_factory=list)
    """metric, value, bound, kind (least, regression), passed; value null: not measurable on these rows, passed."""
    reason: str = ""
    """For people."""

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def gate(new: Mapping[str, float], old: Mapping[str, float] | None, promotion: Promotion) -> Gate:
    """The promotion gate (DECISIONS 7), on the metrics of both models on the same rows.

    Args:
        new: `reward_metrics` of the new model.
        old: of the model that it would replace; None: there is none, only the least values count.
        promotion: least values, and how much any metric may fall below the old model's. The mean absolute error may
            rise by that share of R's range.
    """
    checks: list[dict[str, Any]] = []

    def check(kind: str, metric: str, value: float | None, bound: float | None, passed: bool) -> None:
        checks.append({"kind": kind, "metric": metric, "value": value, "bound": bound, "passed": passed})

    for metric, name in THRESHOLDS.items():
        least = getattr(promotion, name)
        if least is not None:
            value = new.get(metric)
            check("least", metric, value, least, value is None or value >= least)
    if old is not None and promotion.max_regression is not None:
        for metric in THRESHOLDS:
            if metric in new and metric in old:
                bound = old[metric] - promotion.max_regression
                check("regression", metric, new[metric], bound, new[metric] >= bound)
        bound = old["mae"] + promotion.max_regression * (SCORE_MAX - SCORE_MIN)
        check("regression", "mae", new["mae"], bound, new["mae"] <= bound)
    failed = [c for c in checks if not c["passed"]]
    reason = "; ".join(f"{c['metric']} {c['value']:.3f} misses its {c['kind']} bound {c['bound']:.3f}" for c in failed)
    return Gate(not failed, checks, reason or "all checks passed")
