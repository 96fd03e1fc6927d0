"""Whether a retrained R may replace the one in force (docs/decisions.md, 7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from medgr2_api.reward_model import ResolvedPromotion

from ..evaluate.metrics import Interval

#: metric on held-out grades → the field of `rewardModel.promotion` with its least value
LEAST = {
    "spearman": "min_spearman",
    "pairwise_accuracy": "min_pairwise_accuracy",
    "image_sensitivity": "min_image_sensitivity",
}


#: The measure of its answers in which a new model must be no worse than the one in force: the most precise of them.
DECIDES = "answer_auroc"


class PromotionCheckKind(StrEnum):
    """What a metric is held against."""

    LEAST = "least"
    """The spec's least value."""
    MOST = "most"
    """The spec's largest value."""
    GAIN = "gain"
    """The model in force, and `minAurocGain` above it."""
    REGRESSION = "regression"
    """The model in force, less `maxRegression`."""
    INTERVAL = "interval"
    """Lower end of the 95 % interval of the difference from the model in force, against `nonInferiorityMargin`."""


@dataclass(frozen=True)
class PromotionCheck:
    """One condition of the gate."""

    kind: PromotionCheckKind
    metric: str
    value: float | None
    """None: not measurable on these rows; it passes."""
    bound: float
    passed: bool

    @property
    def failure(self) -> str:
        """For people."""
        if self.value is None or self.passed:
            return ""
        if self.kind is PromotionCheckKind.INTERVAL:
            return f"{self.metric} may have fallen by {-self.value:.3f} (lower end; at most {-self.bound:.3f})"
        return f"{self.metric} {self.value:.3f} misses its {self.kind} bound {self.bound:.3f}"


@dataclass(frozen=True)
class PromotionGate:
    """Whether a reward model passed, and every check that was made; the content of `gate.json`."""

    passed: bool
    checks: list[PromotionCheck]
    reason: str
    """For people."""
    gains: dict[str, Interval] = field(default_factory=dict)
    """Measures of its answers less those of the model in force, with 95 % intervals."""

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "gains": {name: gain._asdict() for name, gain in self.gains.items()}}


def gate(
    grades: Mapping[str, float],
    promotion: ResolvedPromotion,
    answers: Mapping[str, float] | None = None,
    gains: Mapping[str, Interval] | None = None,
) -> PromotionGate:
    """The promotion gate.

    Args:
        grades: `reward_metrics` on held-out grades; what was not measurable is left out, and passes.
        promotion: the bounds.
        answers: the model's measures of the validation questions (`ValidationAnswers.measures`).
        gains: the same less those of the model that it would replace; None: there is none, only the least values count.
    """
    kind, checks = PromotionCheckKind, []
    for metric, name in LEAST.items():
        least, value = getattr(promotion, name), grades.get(metric)
        checks.append(PromotionCheck(kind.LEAST, metric, value, least, value is None or value >= least))
    error, most = grades.get("mae"), promotion.max_mean_absolute_error
    checks.append(PromotionCheck(kind.MOST, "mae", error, most, error is None or error <= most))
    for metric, gain in (gains or {}).items():
        decides = metric == DECIDES
        least = promotion.min_auroc_gain if decides else -promotion.max_regression
        value, against = (answers or {})[metric], kind.GAIN if decides else kind.REGRESSION
        checks.append(PromotionCheck(against, metric, value, value - gain.value + least, gain.value >= least))
        margin = -promotion.non_inferiority_margin
        checks.append(PromotionCheck(kind.INTERVAL, metric, gain.low, margin, gain.low >= margin))
    reasons = [check.failure for check in checks if not check.passed]
    return PromotionGate(not reasons, checks, "; ".join(reasons) or "all checks passed", dict(gains or {}))
