"""Stage measure: how often an iteration's checkpoints are right, from what they answered."""

from __future__ import annotations

from .definition import Iterations, Of, Read, Source, StageDefinition, StageParameters
from .evaluate import EVALUATE, EVALUATE_GRPO


class MeasureParameters(StageParameters):
    """Counting and drawing."""

    iteration: int
    """Iteration that made the checkpoints."""


def _build(source: Source) -> MeasureParameters:
    return MeasureParameters(seed=source.seed, iteration=source.iteration)


MEASURE = StageDefinition(
    name="measure",
    sentence="Measures how often an iteration's checkpoints are right, with intervals, from what they answered.",
    parameters=MeasureParameters,
    build=_build,
    iterations=Iterations.BOTH,
    reads=(
        Read("prepare", "prepare", Of.FIRST),
        Read("evaluate", EVALUATE.name),
        Read("evaluategrpo", EVALUATE_GRPO.name, required=False),
    ),
    publishes=("predictions.parquet", "results.json"),
    measures=True,
)
