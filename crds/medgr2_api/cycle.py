"""`MedGR2Cycle`: the object a user writes. The CRD is generated from these models (`crd.py`)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from .cel_rules import Keyed, Rule
from .cross_examination import CrossExamination, ResolvedCrossExamination
from .curation import Curation, ResolvedCuration, Review
from .data import Data, DataFormat, ResolvedData, Workspace
from .evaluation import Evaluation
from .generator import GENERATORS, Generator, ResolvedGenerator
from .model import ApiEnum, Model
from .policy import Policy, ResolvedPolicy
from .reward_model import ResolvedRewardModel, RewardModelSpec
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
from .stages import StageName, definition
from .status import CycleStatus
from .tracking import Tracking
from .training_spec import AnswerFormat
from .types import DNSLabel, bytes_exceed


class Preset(ApiEnum):
    """Named sets of values for what the spec leaves open."""

    DEFAULT = "Default"
    PAPER = "Paper"
    MEDR1 = "MedR1"
    TINY = "Tiny"


class CycleSpec(Model):
    """What the user wants: data, models, how often round the loop, and what it may cost."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("self.iterations >= oldSelf.iterations", "iterations may only grow"),
        Rule("self.workspace == oldSelf.workspace", "workspace is immutable"),
        Rule(
            "!has(self.generator.scripted) || self.data.sources.all(s, s.format == 'Phantom')",
            "generator.scripted only knows phantoms: every source must have format Phantom",
            lambda s: s.generator.scripted is None or all(d.format is DataFormat.PHANTOM for d in s.data.sources),
        ),
        Rule(
            "!has(self.restartFrom) || self.restartFrom.iteration <= self.iterations",
            "restartFrom.iteration is beyond iterations",
            lambda s: s.restart_from is None or s.restart_from.iteration <= s.iterations,
        ),
        Rule(
            "!has(self.budget) || !has(self.budget.generatorUSD) || has(self.generator.prices) || "
            f"({' && '.join(f'!has(self.generator.{name})' for name, kind in GENERATORS.items() if kind.charges)})",
            "budget.generatorUSD needs generator.prices: without them nobody knows what a question costs",
            lambda s: (
                s.budget.generator_usd is None or s.generator.prices is not None or not s.generator.chosen.charges
            ),
        ),
    )

    preset: Preset = Preset.DEFAULT
    """Where unset parameters get their values: Default, Paper (literally the paper), MedR1, or Tiny (for trials)."""
    iterations: Annotated[int, Field(ge=1, le=20)] = 3
    """How often round the loop. May be raised, also after the end."""
    suspend: bool = False
    """true: running stages write a checkpoint and stop; false: they go on."""
    pause_before: Annotated[list[StageName], Field(max_length=14), Keyed()] = []
    """Stages that wait, in every iteration, until they are listed in `approved`."""
    approved: Annotated[list[StageRef], Field(max_length=280)] = []
    """What was paused and may go on; `medgr2 approve` appends here."""
    reviews: Annotated[list[Review], Field(max_length=20), Keyed(("iteration",))] = []
    """Experts' decisions on kept triplets; `medgr2 review import` adds them. A stage curate that has finished takes
    notice by restartFrom."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 17
    """Seed that all random choices of the cycle follow from."""
    answer_format: AnswerFormat | None = None
    """What the policy writes as its answer: the option's Letter, or the OptionText."""
    max_parallel_stages: Annotated[int, Field(ge=1, le=64)] = 4
    """Stages that may run at the same time."""
    active_deadline_seconds: Annotated[int | None, Field(ge=1)] = None
    """Longest life of the cycle in seconds; stands still while suspended, and while all that is left to do waits for a
    queue or for approval. Absent: no limit."""
    pending_deadline_seconds: Annotated[int, Field(ge=1)] = 86_400
    """Longest wait of a stage to be started; time in a queue does not count."""
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
    reward_model: RewardModelSpec
    """R, the reward model, which scores each candidate triplet."""
    curation: Curation = Curation()
    """From scored candidates to training data."""
    cross_examination: CrossExamination = CrossExamination()
    """How questions without gold get an answer that several sources support."""
    policy: Policy
    """π, the policy: the vision-language model that the loop trains."""
    evaluation: Evaluation = Evaluation()
    """How checkpoints are evaluated: benchmarks, controls, scoring."""
    tracking: Tracking | None = None
    """Who follows the trainings, beside the TensorBoard files in the workspace; absent: nobody."""
    queueing: Queueing | None = None
    """How Kueue queues the stages; absent: Kubernetes schedules them directly."""
    failure_policy: FailurePolicy = FailurePolicy()
    """How often a stage is tried again."""
    template: PodTemplate = PodTemplate()
    """Template of every stage's pod: image, environment, placement."""
    stages: Annotated[list[StageSettings], Field(max_length=14), Keyed(("name",))] = []
    """Settings of single stages that differ from those of the cycle."""

    def stage(self, name: StageName) -> StageSettings:
        """The settings of a stage: its own, else those of the stage that it goes by, else the defaults."""
        told = {stage.name: stage for stage in self.stages}
        found = told.get(name) or told.get(definition(name).settings_of)
        return found.model_copy(update={"name": name}) if found is not None else StageSettings(name=name)


class ResolvedSpec(CycleSpec):
    """The spec after `presets.resolve`: nothing that a preset owns, or that follows from other values, is absent."""

    answer_format: AnswerFormat
    data: ResolvedData
    generator: ResolvedGenerator
    reward_model: ResolvedRewardModel
    curation: ResolvedCuration
    cross_examination: ResolvedCrossExamination
    policy: ResolvedPolicy


class Metadata(Model):
    """The parts of a Kubernetes object's metadata that we read."""

    model_config = {"extra": "ignore"}

    name: DNSLabel
    """Name of the cycle; becomes part of the names of Jobs and folders."""
    namespace: str = "default"
    """Namespace of the cycle."""
    uid: str = ""
    """Identity over the whole life of the object, set by the API server."""
    generation: int = 1
    """Counts the changes of the spec."""
    deletion_timestamp: str | None = None
    """When somebody asked for its deletion."""
    labels: dict[str, str] = {}
    """Labels of the object."""


#: Bytes of a spec in JSON: all work on a cycle grows with it. A plain one has two thousand; `kubectl apply` takes no
#: larger.
LARGEST_SPEC = 256 * 1024


class Cycle(Model):
    """One closed training loop: generate, score, curate, SFT, GRPO, relabel, preferences, reward retraining."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 63",
            "metadata.name must be an RFC 1035 label of at most 63 characters: Jobs and Services are named after it",
        ),
    )

    api_version: Literal["medgr2.io/v1alpha1"] = "medgr2.io/v1alpha1"
    """Group and version of the API: medgr2.io/v1alpha1."""
    kind: Literal["MedGR2Cycle"] = "MedGR2Cycle"
    """Kind of the object: always MedGR2Cycle."""
    metadata: Metadata
    """Name, namespace and what else every Kubernetes object has."""
    spec: CycleSpec
    """What the user wants."""
    status: CycleStatus = Field(default_factory=CycleStatus)
    """What the operator has done so far; users never write it."""

    @classmethod
    def as_written(cls, document: dict[str, Any]) -> Self:
        """The cycle in a document that a user wrote, with the names of the wire alone.

        Raises:
            ValidationError: it is no valid cycle, or its spec is too large to be looked at.
        """
        if bytes_exceed(document.get("spec"), LARGEST_SPEC):
            message = f"is larger than {LARGEST_SPEC // 1024} KiB, and no cycle needs as much: shorten it"
            error = InitErrorDetails(type=PydanticCustomError("too_large", message), loc=("spec",), input={})
            raise ValidationError.from_exception_data(cls.__name__, [error], hide_input=True)
        return cls.model_validate(document, by_alias=True, by_name=False)
