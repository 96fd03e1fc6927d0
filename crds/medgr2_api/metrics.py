"""What is measured of a checkpoint, declared once.

From a declaration follow the counters of stage evaluate, the scores in a cycle's status and its CRD, what
`earlyStopping.metric` takes, the exported gauge and the columns of the report. What computes a metric stands under the
same name in `medgr2_jobs.evaluate.metrics`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError


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


#: What models are compared by, unless the spec says otherwise.
MACRO_ACCURACY = Metric("macroAccuracy", "Mean of the accuracies over modalities, 0..1.", True, "macro")
MICRO_ACCURACY = Metric("microAccuracy", "Share of all items that are answered right, 0..1.", True)

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        MACRO_ACCURACY,
        MICRO_ACCURACY,
        Metric("macroF1", "Mean over answer texts of the F1 of naming that text, 0..1."),
        Metric("auroc", "Mean over answer texts of the area under the ROC curve, one text against the rest, 0..1."),
        Metric("parseFailures", "Share of the written answers from which no option can be read, 0..1."),
    )
}
"""All of them, by name."""


#: The figure that headline tables, comparisons and figures show, everywhere: how often the likeliest option is right.
HEADLINE = MICRO_ACCURACY


def is_headline(row: Mapping[str, object], scoring: str = "option_logprob") -> bool:
    """Whether a row of `results.json` is a headline figure: `HEADLINE` over all questions of a set."""
    return (row["metric"], row["slice"], row["scoring"]) == (HEADLINE.name, "all", scoring)


def deciding() -> list[Metric]:
    """Those that may decide."""
    return [metric for metric in METRICS.values() if metric.may_decide]


def counter(split: str, checkpoint: str, metric: Metric) -> str:
    """Name of a metric of a checkpoint among the counters of stage evaluate."""
    return f"{split}/{checkpoint}/{metric.name}"


def scores(counters: Mapping[str, float], checkpoint: str) -> dict[str, float]:
    """What may decide about a checkpoint, by the metrics' names, from the counters of stage evaluate."""
    names = {metric.name: counter("validation", checkpoint, metric) for metric in deciding()}
    return {name: counters[key] for name, key in names.items() if key in counters}


def _may_decide(name: object) -> object:
    names = [metric.name for metric in deciding()]
    if name not in names:  # as pydantic says it of an enum
        raise PydanticCustomError("enum", "Input should be {expected}", {"expected": ", ".join(map(repr, names))})
    return name


class _Enum:
    """The names in the CRD."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(core), "enum": [metric.name for metric in deciding()]}


DecidingMetric = Annotated[str, BeforeValidator(_may_decide), _Enum()]
"""Name of a metric that may decide."""
