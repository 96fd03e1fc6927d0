"""Stage relabel: what is right where nobody has gold: R, the policy and the generator cross-examined."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medgr2_api.cross_examination import ResolvedCrossExamination
from medgr2_api.engine import IN_PROCESS, Engine
from medgr2_api.reward_model import RetrainOn
from medgr2_api.training_spec import AnswerFormat

from .definition import Iterations, Of, Read, Source, StageDefinition, StageParameters
from .grpo import learns_from_reward

if TYPE_CHECKING:
    from medgr2_api.cycle import ResolvedSpec


class RelabelParameters(StageParameters):
    """How the questions of an iteration's candidates are settled."""

    cross_examination: ResolvedCrossExamination
    """How the policy is asked, and when a question counts as settled."""
    review: str = ""
    """sha256 of an expert's decisions on this iteration's triplets; empty: none."""
    answer_format: AnswerFormat
    """What stands between <answer> and </answer>."""
    engine: Engine = IN_PROCESS
    """Who answers for the checkpoints that are asked."""


def _build(source: Source) -> RelabelParameters:
    return RelabelParameters(
        seed=source.seed,
        cross_examination=source.spec.cross_examination,
        review=next((review.sha256 for review in source.spec.reviews if review.iteration == source.iteration), ""),
        answer_format=source.spec.answer_format,
        engine=source.spec.policy.engine,
    )


def _needed(spec: ResolvedSpec, on: frozenset[str]) -> bool:
    """There is an R anyway, and something learns from what is settled."""
    learning = spec.curation.correct or ("reward" in on and on_settled_questions(spec))
    has_reward_model = "score" in on or "reward" in on or ("grpo" in on and learns_from_reward(spec))
    return learning and has_reward_model


def on_settled_questions(spec: ResolvedSpec) -> bool:
    """Whether R is retrained on the settled questions."""
    return spec.reward_model.retrain_on is RetrainOn.CROSS_EXAMINED


#: What the settled questions of all iterations so far are read from (`medgr2_jobs.curate.settled`).
SETTLED = (
    Read("generate", "generate", Of.EVERY),
    Read("relabel", "relabel", Of.EVERY),
)

RELABEL = StageDefinition(
    name="relabel",
    sentence="Settles what the right answers to the candidates' questions are: R, the policy and the generator"
    " cross-examined ([cross-examination.md](cross-examination.md)).",
    parameters=RelabelParameters,
    build=_build,
    spec_paths={
        "engine": "policy.engine",
        "crossExamination": "crossExamination",
        "review": "reviews",
    },
    iterations=Iterations.LOOP,
    reads=(
        Read("prepare", "prepare", Of.FIRST),
        Read("candidates", "generate"),
        Read("decisions", "curate"),
        Read("reward", "reward", Of.NEWEST),
        Read("policy", "grpo", otherwise="sft"),
    ),
    publishes=("posteriors.parquet",),
    needed=_needed,
    for_next_round=True,
    computes=True,
)
