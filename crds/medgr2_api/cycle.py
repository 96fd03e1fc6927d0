"""`MedGR2Cycle`: the object a user writes. The CRD is generated from these models (`schema.py`)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from .base import ApiEnum, Model, Rule
from .data import Data, Workspace
from .models import Curation, Evaluation, Generator, Policy, RewardModel
from .scheduling import (
    Budget,
    EarlyStopping,
    FailurePolicy,
    PodTemplate,
    Queueing,
    RestartFrom,
    StageRef,
    StageSettings,
)
from .stages import StageName
from .status import CycleStatus


class Preset(ApiEnum):
    """Named sets of values for what the spec leaves open."""

    DEFAULT = "Default"
    PAPER = "Paper"
    MEDR1 = "MedR1"
    TINY = "Tiny"


class AnswerFormat(ApiEnum):
    """What stands between <answer> and </answer>."""

    LETTER = "Letter"
    OPTION_TEXT = "OptionText"


class CycleSpec(Model):
    """What the user wants: data, models, how often round the loop, and what it may cost."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("self.iterations >= oldSelf.iterations", "iterations may only grow"),
        Rule("self.workspace == oldSelf.workspace", "workspace is immutable"),
    )

    preset: Preset = Preset.DEFAULT
    """Where unset parameters get their values: Default, Paper (literally the paper), MedR1, or Tiny (for trials)."""
    iterations: Annotated[int, Field(ge=1, le=20)] = 3
    """How often round the loop. May be raised, also after the end."""
    suspend: bool = False
    """true: running stages write a checkpoint and stop; false: they go on."""
    pause_before: Annotated[list[StageName], Field(max_length=11)] = []
    """Stages that wait, in every iteration, until they are listed in `approved`."""
    approved: Annotated[list[StageRef], Field(max_length=220)] = []
    """What was paused and may go on; `medgr2 approve` appends here."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 17
    """Seed of everything random."""
    answer_format: AnswerFormat | None = None
    """What the policy writes as its answer: the option's Letter, or the OptionText."""
    max_parallel_stages: Annotated[int, Field(ge=1, le=64)] = 4
    """Stages that may run at the same time."""
    active_deadline_seconds: Annotated[int | None, Field(ge=1)] = None
    """Longest life of the cycle in seconds; stands still while suspended."""
    pending_deadline_seconds: Annotated[int, Field(ge=1)] = 86_400
    """Longest wait of a stage to be scheduled."""
    ttl_seconds_after_finished: Annotated[int | None, Field(ge=0)] = None
    """Delete the cycle this long after it finished; absent: never."""
    restart_from: RestartFrom | None = None
    """Run a stage, and all that depends on it, again."""
    early_stopping: EarlyStopping | None = None
    """Stop when the validation split no longer improves; absent: never."""
    budget: Budget = Budget()
    """What the cycle may cost; absent: no limit."""
    workspace: Workspace
    """The volume that all stages share. Immutable. `medgr2 run` uses its own folder instead."""
    data: Data
    """Where the seed, the images and the benchmarks come from."""
    generator: Generator
    """Who proposes question, answer and rationale."""
    reward_model: RewardModel
    """R: scores a triplet."""
    curation: Curation = Curation()
    """From scored candidates to training data."""
    policy: Policy
    """π: the model the user wants."""
    evaluation: Evaluation = Evaluation()
    """How checkpoints are measured."""
    queueing: Queueing | None = None
    """Kueue; absent: plain scheduling."""
    failure_policy: FailurePolicy = FailurePolicy()
    """How often a stage is tried again."""
    template: PodTemplate = PodTemplate()
    """What every stage's pod has."""
    stages: Annotated[list[StageSettings], Field(max_length=11)] = []
    """What differs for single stages."""

    @model_validator(mode="after")
    def _unique_stages(self) -> CycleSpec:
        names = [stage.name for stage in self.stages]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"stages: listed twice: {', '.join(twice)}")
        return self

    def stage(self, name: StageName) -> StageSettings:
        """The settings of a stage; defaults where the spec says nothing."""
        return next((stage for stage in self.stages if stage.name == name), StageSettings(name=name))


class Metadata(Model):
    """The parts of a Kubernetes object's metadata that we read."""

    model_config = {"extra": "ignore"}

    name: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")]
    namespace: str = "default"
    uid: str = ""
    generation: int = 1
    resource_version: str = ""
    deletion_timestamp: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Cycle(Model):
    """A whole MedGR2Cycle object."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 63",
            "metadata.name must be an RFC 1035 label: it becomes part of Job and Service names",
        ),
    )

    api_version: Literal["medgr2.io/v1alpha1"] = "medgr2.io/v1alpha1"
    kind: Literal["MedGR2Cycle"] = "MedGR2Cycle"
    metadata: Metadata
    spec: CycleSpec
    status: CycleStatus = Field(default_factory=CycleStatus)

    def dump(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
