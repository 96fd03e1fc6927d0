"""Stage evaluate: the base model (iteration 0) or an iteration's checkpoints on validation and benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medgr2_api.engine import IN_PROCESS, Engine
from medgr2_api.evaluation import Control
from medgr2_api.training_spec import AnswerFormat

from .definition import Iterations, Of, Read, Source, StageDefinition, StageParameters

if TYPE_CHECKING:
    pass


class EvaluateParameters(StageParameters):
    """Measuring checkpoints."""

    iteration: int
    """Iteration that made the checkpoints."""
    controls: list[Control]
    """Controls beside the real measurement."""
    answer_format: AnswerFormat
    """What stands between <answer> and </answer>."""
    engine: Engine = IN_PROCESS
    """Who answers for the checkpoints that are asked."""


def _build(source: Source) -> EvaluateParameters:
    return EvaluateParameters(
        seed=source.seed,
        iteration=source.iteration,
        controls=source.spec.evaluation.controls,
        answer_format=source.spec.answer_format,
        engine=source.spec.policy.engine,
    )


EVALUATE = StageDefinition(
    name="evaluate",
    sentence="Measures the base model, later both checkpoints, with controls.",
    parameters=EvaluateParameters,
    build=_build,
    spec_paths={
        "engine": "policy.engine",
        "controls": "evaluation.controls",
    },
    iterations=Iterations.BOTH,
    reads=(
        Read("prepare", "prepare", Of.FIRST),
        Read("sft", "sft"),
        Read("grpo", "grpo", required=False),
    ),
    publishes=("predictions.parquet", "results.json"),
    measures=True,
    only_asks=True,
    code_version=2,  # more forms of an answer are read; a generation configuration of ours; the stronger option prior
    computes=True,
)
