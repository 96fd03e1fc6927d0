"""Stage distill: a student learns to generate (Algorithm 1, line 14)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medgr2_api.distillation import Attempts, ResolvedDistillation, StudentPromotion
from medgr2_api.generator import Sampling
from medgr2_api.training_spec import AnswerFormat, FullFineTuning, ResolvedTraining

from .curate import TRAINING_SET
from .definition import Iterations, Of, Read, Source, StageDefinition, StageParameters

if TYPE_CHECKING:
    from medgr2_api.cycle import ResolvedSpec


class DistillParameters(StageParameters):
    """Teaching and judging a student."""

    training: ResolvedTraining
    """How it learns."""
    max_attempts: Attempts
    """How often a task is asked at most."""
    promotion: StudentPromotion
    """When it takes tasks over."""
    sampling: Sampling
    """Sampling settings with which it is asked."""
    answer_format: AnswerFormat
    """What stands between <answer> and </answer> of the policy."""


#: Without the section there is no such stage, but the parameters of all stages are compared.
_NO_STUDENT = ResolvedDistillation(
    training=ResolvedTraining(lora=FullFineTuning(rank=0), learning_rate=1.0, num_epochs=1.0)
)


def _build(source: Source) -> DistillParameters:
    distillation = source.spec.generator.distillation or _NO_STUDENT
    return DistillParameters(
        seed=source.seed,
        training=distillation.training,
        max_attempts=distillation.max_attempts,
        promotion=distillation.promotion,
        sampling=source.spec.generator.sampling,
        answer_format=source.spec.answer_format,
    )


def _corrects(spec: ResolvedSpec) -> bool:
    return spec.curation.correct


def _asked_for(spec: ResolvedSpec, on: frozenset[str]) -> bool:
    return spec.generator.distillation is not None and "generate" in on


DISTILL = StageDefinition(
    name="distill",
    sentence="Teaches a student to generate from D_gen; it answers part of the next iteration's tasks if its gate"
    " passes ([distillation.md](distillation.md)).",
    parameters=DistillParameters,
    build=_build,
    spec_paths={
        "training": "generator.distillation.training",
        "maxAttempts": "generator.distillation.maxAttempts",
        "promotion": "generator.distillation.promotion",
        "sampling": "generator.sampling",
    },
    iterations=Iterations.LOOP,
    reads=(
        *(read for read in TRAINING_SET if read.maker != "relabel"),
        Read("relabel", "relabel", Of.EVERY, required=False, when=_corrects),  # this iteration's too
        Read("policy", "grpo", otherwise="sft"),
        Read("reward", "reward", Of.NEWEST),
        Read("students", "distill", Of.EARLIER, required=False),
    ),
    publishes=("model/", "rows.parquet", "probe.parquet", "gate.json", "student.json", "log.json"),
    needed=_asked_for,
    promoted=True,
    for_next_round=True,
    computes=True,
)
