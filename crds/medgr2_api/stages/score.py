"""Stage score: what the reward model says of every candidate (Algorithm 1, line 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medgr2_api.curation import SelectionStrategy
from medgr2_api.training_spec import AnswerFormat

from .definition import Iterations, Of, Read, Source, StageDefinition, StageParameters
from .grpo import learns_from_reward

if TYPE_CHECKING:
    from medgr2_api.cycle import ResolvedSpec

_BY_SCORE = (SelectionStrategy.THRESHOLD, SelectionStrategy.FITTED_PRECISION, SelectionStrategy.TOP_K)


class ScoreParameters(StageParameters):
    """Scoring has no parameters but the model's."""

    shards: int
    """Parts that the work is divided into."""
    answer_format: AnswerFormat
    """What stands between <answer> and </answer>."""


def _build(source: Source) -> ScoreParameters:
    return ScoreParameters(
        seed=source.seed, shards=source.spec.stage("score").shards, answer_format=source.spec.answer_format
    )


def _needed(spec: ResolvedSpec, on: frozenset[str]) -> bool:
    """Selection goes by the scores; or there is an R anyway, because something learns from it."""
    learning = "reward" in on or ("grpo" in on and learns_from_reward(spec))
    return learning or spec.curation.selection.strategy in _BY_SCORE


SCORE = StageDefinition(
    name="score",
    sentence="Scores every candidate with the reward model.",
    parameters=ScoreParameters,
    build=_build,
    spec_paths={
        "shards": "stages[score].shards",
    },
    iterations=Iterations.LOOP,
    reads=(Read("candidates", "generate"), Read("reward", "reward", Of.NEWEST)),
    publishes=("scores.parquet",),
    sharded=True,
    needed=_needed,
    computes=True,
)
