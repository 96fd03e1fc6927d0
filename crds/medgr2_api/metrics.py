"""What is measured of a checkpoint, declared once.

From a declaration follow the counters of stage evaluate, the scores in a cycle's status and its CRD, what
`earlyStopping.metric` takes, the exported gauges and the columns of the report. What computes a metric stands in
`medgr2_jobs.evaluate.metrics` under the same name.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A figure of a checkpoint on a set of questions."""

    name: str
    """In results, counters, status and spec."""
    sentence: str
    """What it is, for `kubectl explain` and the docs."""
    may_decide: bool = False
    """Whether early stopping may read it, on the validation split: then it is a score, larger is better, 0..1."""
    column: str = ""
    """Heading of its column in the report's tables; empty: the tables do not show it."""


MACRO_ACCURACY = Metric("macroAccuracy", "Mean of the accuracies over modalities, 0..1", True, "macro")
"""What models are compared by, unless the spec says otherwise."""
MICRO_ACCURACY = Metric("microAccuracy", "Accuracy over all items, 0..1", True)

#: All of them, by name.
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        MACRO_ACCURACY,
        MICRO_ACCURACY,
        Metric("macroF1", "Mean over answer texts of the F1 of naming that text, 0..1"),
        Metric("auroc", "Mean over answer texts of the area under the ROC curve, one text against the rest, 0..1"),
        Metric("parseFailures", "Share of the written answers from which no option can be read, 0..1"),
    )
}


def deciding() -> list[Metric]:
    """Those that may decide."""
    return [metric for metric in METRICS.values() if metric.may_decide]


def counter(split: str, checkpoint: str, metric: Metric) -> str:
    """Name of a metric of a checkpoint among the counters of stage evaluate."""
    return f"{split}/{checkpoint}/{metric.name}"
