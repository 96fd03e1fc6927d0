"""Stage prepare: the user's data and models, fetched, checked, stored and divided; D_grade built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medgr2_api.data import ResolvedData
from medgr2_api.reward_model import Grades
from medgr2_api.training_spec import AnswerFormat

from .definition import Iterations, Source, StageDefinition, StageParameters

if TYPE_CHECKING:
    from medgr2_api.cycle import ResolvedSpec


class PrepareParameters(StageParameters):
    """Inputs to fetch, pin and split; D_grade to build."""

    data: ResolvedData
    """Sources, split and benchmarks."""
    policy_base_model: str
    """Model that the policy starts from."""
    reward_base_model: str
    """Model that R starts from."""
    reward_checkpoint: str | None = None
    """The user's own R⁽⁰⁾, if any."""
    student_base_model: str | None = None
    """Model that students start from, if it is another one than the policy's."""
    answer_format: AnswerFormat
    """What stands between <answer> and </answer>."""
    grades: Grades
    """Target scores of D_grade."""
    mismatches_per_item: int
    """Wrong-image and wrong-answer rows of each gold item."""


def _build(source: Source) -> PrepareParameters:
    return PrepareParameters(
        seed=source.seed,
        data=source.spec.data,
        policy_base_model=source.spec.policy.base_model,
        reward_base_model=source.spec.reward_model.base_model,
        reward_checkpoint=source.spec.reward_model.checkpoint,
        student_base_model=_student_base(source.spec),
        answer_format=source.spec.answer_format,
        grades=source.spec.reward_model.grades,
        mismatches_per_item=source.spec.reward_model.mismatches_per_item,
    )


def _student_base(spec: ResolvedSpec) -> str | None:
    distillation = spec.generator.distillation
    base = distillation.base_model if distillation is not None else None
    return base if base != spec.policy.base_model else None


PREPARE = StageDefinition(
    name="prepare",
    sentence="Fetches, checks, stores and divides the user's data and models ([data.md](data.md)), and builds D_grade.",
    parameters=PrepareParameters,
    build=_build,
    spec_paths={
        "policyBaseModel": "policy.baseModel",
        "rewardBaseModel": "rewardModel.baseModel",
        "studentBaseModel": "generator.distillation.baseModel",
        "rewardCheckpoint": "rewardModel.checkpoint",
        "grades": "rewardModel.grades",
        "mismatchesPerItem": "rewardModel.mismatchesPerItem",
    },
    iterations=Iterations.FIRST,
    publishes=(
        "images.parquet",
        "image_origins.parquet",
        "items.parquet",
        "grades.parquet",
        "quarantine.parquet",
        "splits.json",
        "models/",
    ),
    may_publish=("phantoms.parquet", "inputs.json"),
    fetches=True,
    # empty cells are missing; right answers by file; transparency on white; what shows nothing is out; private names;
    # all sources of an image
    code_version=4,
)
