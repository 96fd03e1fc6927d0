"""Stages evaluate and evaluategrpo: each asks one checkpoint the questions of validation and benchmarks."""

from __future__ import annotations

from collections.abc import Callable

from medgr2_api.engine import IN_PROCESS, Engine
from medgr2_api.evaluation import Control
from medgr2_api.training_spec import AnswerFormat

from .definition import Iterations, Of, Read, Source, StageDefinition, StageParameters


class EvaluateParameters(StageParameters):
    """Asking a checkpoint."""

    iteration: int
    """Iteration that made the checkpoint."""
    controls: list[Control]
    """Controls beside the real measurement."""
    answer_format: AnswerFormat
    """What stands between <answer> and </answer>."""
    engine: Engine = IN_PROCESS
    """Who answers for the checkpoints that are asked."""
    shards: int = 1
    """Parts that the work is divided into."""


def _of(name: str) -> Callable[[Source], EvaluateParameters]:
    def build(source: Source) -> EvaluateParameters:
        return EvaluateParameters(
            seed=source.seed,
            iteration=source.iteration,
            controls=source.spec.evaluation.controls,
            answer_format=source.spec.answer_format,
            engine=source.spec.policy.engine,
            shards=source.spec.stage(name).shards,
        )

    return build


_SPEC_PATHS = {"engine": "policy.engine", "controls": "evaluation.controls"}

EVALUATE = StageDefinition(
    name="evaluate",
    sentence="Asks the base model, later the checkpoint of SFT while GRPO trains, with controls.",
    parameters=EvaluateParameters,
    build=_of("evaluate"),
    spec_paths={**_SPEC_PATHS, "shards": "stages[evaluate].shards"},
    iterations=Iterations.BOTH,
    reads=(
        Read("prepare", "prepare", Of.FIRST),
        Read("sft", "sft"),
    ),
    publishes=("predictions.parquet",),
    serves=("measure",),
    sharded=True,
    only_asks=True,
    code_version=3,  # one checkpoint's answers, in batches of their own
    computes=True,
)

EVALUATE_GRPO = StageDefinition(
    name="evaluategrpo",
    sentence="Asks the checkpoint of GRPO, also one that does not go on; its settings are those of evaluate, unless it"
    " has its own.",
    parameters=EvaluateParameters,
    build=_of("evaluategrpo"),
    spec_paths={**_SPEC_PATHS, "shards": "stages[evaluategrpo].shards"},
    iterations=Iterations.LOOP,
    reads=(
        Read("prepare", "prepare", Of.FIRST),
        Read("grpo", "grpo"),
    ),
    publishes=("predictions.parquet",),
    serves=("measure",),
    sharded=True,
    only_asks=True,
    settings_of="evaluate",
    module="medgr2_jobs.stages.evaluate",
    computes=True,
)
