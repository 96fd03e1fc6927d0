"""How good R is on held-out graded rows; whether a retrained R may replace the old one (docs/decisions.md, 7)."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Protocol

import numpy as np

from medgr2_api.training_spec import ResolvedPromotion

from ..evaluate.rank_statistics import auroc, spearman
from ..store.rows import Grade
from .model import SCORE_MAX, SCORE_MIN

#: metric → the field of `rewardModel.promotion` that sets its least value
THRESHOLDS = {
    "spearman": "min_spearman",
    "pairwise_accuracy": "min_pairwise_accuracy",
    "image_sensitivity": "min_image_sensitivity",
}


class GradedResponse(Protocol):
    """A held-out answer with its grade: a graded row, or a preference."""

    @property
    def response(self) -> str: ...

    @property
    def grade(self) -> Grade: ...

    @property
    def target(self) -> float: ...


def reward_metrics(
    rows: Sequence[GradedResponse], questions: Sequence[str], scores: np.ndarray, good: float
) -> dict[str, float]:
    """Figures of one R on graded rows. What the rows do not allow to measure is left out.

    Args:
        rows: N graded answers.
        questions: (N) names the question that each one answers.
        scores: (N,) R's scores.
        good: least target of a good row.

    Returns:
        n; spearman (rank correlation of score and target); pairwise_accuracy (share of same-question pairs of
        different target in the right order, ties half); auroc (good against the rest); image_sensitivity (share of
        original texts that score higher with their own image than with another, ties half); mae_<grade> and their
        mean over grades, mae.
    """
    targets = np.array([row.target for row in rows], dtype=np.float64)
    figures: dict[str, float] = {"n": float(len(rows))}
    if len(set(targets)) > 1:
        varies = len(set(scores.tolist())) > 1
        figures["spearman"] = spearman(scores, targets) if varies else 0.0
    members: dict[str, list[int]] = defaultdict(list)
    for index, question in enumerate(questions):
        members[question].append(index)
    pairs = [
        (a, b) if targets[a] > targets[b] else (b, a)
        for indices in members.values()
        for a, b in itertools.combinations(indices, 2)
        if targets[a] != targets[b]
    ]
    if pairs:
        figures["pairwise_accuracy"] = _higher_first(scores, pairs)
    is_good = targets >= good
    if is_good.any() and not is_good.all():
        figures["auroc"] = auroc(scores, is_good)
    answered = [(question, row.response) for question, row in zip(questions, rows, strict=True)]
    own = {answered[index]: index for index, row in enumerate(rows) if row.grade is Grade.ORIGINAL}
    swapped = [
        (own[answered[index]], index)
        for index, row in enumerate(rows)
        if row.grade is Grade.IMAGE_MISMATCH and answered[index] in own
    ]
    if swapped:
        figures["image_sensitivity"] = _higher_first(scores, swapped)
    grades = sorted({row.grade for row in rows})
    for grade in grades:
        chosen = np.array([row.grade is grade for row in rows])
        figures[f"mae_{grade}"] = float(np.abs(scores - targets)[chosen].mean())
    if grades:
        figures["mae"] = float(np.mean([figures[f"mae_{grade}"] for grade in grades]))
    return figures


def _higher_first(scores: np.ndarray, pairs: Sequence[tuple[int, int]]) -> float:
    """Share of pairs whose first scores higher than its second; ties count half."""
    first, second = np.array(pairs).T
    return float(np.mean((scores[first] > scores[second]) + 0.5 * (scores[first] == scores[second])))


class PromotionCheckKind(StrEnum):
    """What a metric is held against."""

    LEAST = "least"
    """The spec's least value."""
    REGRESSION = "regression"
    """The model that would be replaced."""


@dataclass(frozen=True)
class PromotionCheck:
    """One condition of the gate."""

    kind: PromotionCheckKind
    metric: str
    value: float | None
    """None: not measurable on these rows; it passes."""
    bound: float
    passed: bool


@dataclass(frozen=True)
class PromotionGate:
    """Whether a reward model passed, and every check that was made; the content of `gate.json`."""

    passed: bool
    checks: list[PromotionCheck]
    reason: str
    """For people."""

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def gate(new: Mapping[str, float], old: Mapping[str, float] | None, promotion: ResolvedPromotion) -> PromotionGate:
    """The promotion gate (docs/decisions.md, 7), on the metrics of both models on the same rows.

    Args:
        new: `reward_metrics` of the new model.
        old: of the model that it would replace; None: there is none, only the least values count.
        promotion: least values, and how much any metric may fall below the old model's. The mean absolute error may
            rise by that share of R's range.
    """
    checks: list[PromotionCheck] = []
    for metric, name in THRESHOLDS.items():
        least, value = getattr(promotion, name), new.get(metric)
        checks.append(PromotionCheck(PromotionCheckKind.LEAST, metric, value, least, value is None or value >= least))
    if old is not None:
        for metric in THRESHOLDS:
            if metric in new and metric in old:
                bound = old[metric] - promotion.max_regression
                checks.append(
                    PromotionCheck(PromotionCheckKind.REGRESSION, metric, new[metric], bound, new[metric] >= bound)
                )
        bound = old["mae"] + promotion.max_regression * (SCORE_MAX - SCORE_MIN)
        checks.append(PromotionCheck(PromotionCheckKind.REGRESSION, "mae", new["mae"], bound, new["mae"] <= bound))
    failed = [check for check in checks if not check.passed]
    reason = "; ".join(
        f"{check.metric} {check.value:.3f} misses its {check.kind} bound {check.bound:.3f}" for check in failed
    )
    return PromotionGate(not failed, checks, reason or "all checks passed")
