"""A cycle's status: what the planner remembers. The same object is a CR's status and a workspace's `state.json`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, GetJsonSchemaHandler, SerializerFunctionWrapHandler, model_serializer
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from .cel_rules import Keyed
from .metrics import deciding
from .model import ApiEnum, Model
from .stage_contract import Progress
from .stages import StageName
from .waiting import WaitingReason

_WAITING_WORDS = frozenset(map(str, WaitingReason))


class Phase(ApiEnum):
    """For display only; derived from the conditions."""

    PENDING = "Pending"
    RUNNING = "Running"
    WAITING = "Waiting"
    """Nothing runs, and what does not is known."""
    SUSPENDED = "Suspended"
    PAUSED = "Paused"
    COMPLETE = "Complete"
    FAILED = "Failed"
    INVALID = "Invalid"
    """The spec cannot be run as it is written."""


class AttemptState(ApiEnum):
    """Where an attempt is. Succeeded, Failed and Gone are for ever. AwaitingApproval: there is none before a person
    says so."""

    AWAITING_APPROVAL = "AwaitingApproval"
    PENDING = "Pending"
    RUNNING = "Running"
    TERMINATING = "Terminating"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    GONE = "Gone"


class Condition(Model):
    """One aspect of the state, in the form of Kubernetes' conditions."""

    type: Annotated[str, Field(max_length=316)]
    """WorkspaceReady, Progressing, Suspended, Complete, Failed, Ready, Reconciling, Stalled or SpecApplied; once it was
    true, AwaitingApproval or NameConflict."""
    status: Literal["True", "False", "Unknown"]
    """Whether the condition holds: True, False or Unknown."""
    reason: Annotated[str, Field(max_length=1024)] = ""
    """Machine-readable reason, one CamelCase word."""
    message: Annotated[str, Field(max_length=1024)] = ""
    """Human-readable explanation of the reason."""
    observed_generation: int = 0
    """Generation of the spec that this is about."""
    last_transition_time: datetime | None = None
    """Time at which `status` last changed."""


class StageStatus(Model):
    """One stage of one iteration, with its newest attempt."""

    iteration: int
    """Iteration; 0 for what runs once before the loop."""
    name: StageName
    """Name of the stage that this record is about."""
    state: AttemptState = AttemptState.PENDING
    """State of the stage's newest attempt."""
    token: str = ""
    """restartFrom token that this run of the stage belongs to."""
    attempt: int = 0
    """Number of the newest attempt; 0: none was made."""
    job_name: str = ""
    """Job of the newest attempt (locally: its name)."""
    job_uid: Annotated[str, Field(alias="jobUID")] = ""
    """Its uid (locally: pid and start time)."""
    input_hash: str = ""
    """Hash of code version, parameters and inputs: where it publishes."""
    asked: str = ""
    """Digest of what the spec asked for when the hash was formed: while that is the same, unfinished work keeps its
    hash through upgrades."""
    spec: int = 0
    """Which of `status.specs` it was made with, counted from 0."""
    output_digest: str = ""
    """Digest of what it published; empty: not finished."""
    promoted: bool | None = None
    """A stage whose model has to be promoted: false kept the model before it."""
    reused: bool = False
    """A valid result was already on the volume."""
    collect: bool = False
    """The newest attempt only reads the manifest of an earlier success."""
    start_time: datetime | None = None
    """When the newest attempt started to run."""
    completion_time: datetime | None = None
    """Time at which the run ended."""
    run_seconds: float = 0.0
    """Seconds that the stage has run, summed over all attempts."""
    retries: int = 0
    """Attempts lost to application errors."""
    infra_restarts: int = 0
    """Attempts lost to the infrastructure."""
    checkpoint_step: int = -1
    """Last step known to be safe on the volume; an attempt that moved it made progress."""
    retry_after: datetime | None = None
    """Time before which no new attempt is made."""
    given_up: bool = False
    """No new attempt at all: the failure is permanent, or the tries are used up. The cycle fails."""
    gpus: float = 0
    """Number of GPUs that the newest attempt has."""
    generator_usd: Annotated[float, Field(alias="generatorUSD")] = 0.0
    """What it paid to the generator's provider, as far as it was told, over all attempts."""
    generator_budget_usd: Annotated[float | None, Field(alias="generatorBudgetUSD")] = None
    """The cycle's budget when the newest attempt was made."""
    attempt_seconds: float = 0.0
    """Seconds run by the newest attempt, less the stretch that is running now."""
    running_since: datetime | None = None
    """Start of the stretch that is running now (a queue may interrupt an attempt)."""
    pending_since: datetime | None = None
    """Since when it waits to be approved or scheduled; absent: it does not."""
    counting_since: datetime | None = None
    """Since when the wait counts against pendingDeadlineSeconds; absent: it does not, as in a queue."""
    waited_seconds: float = 0.0
    """Seconds of the wait that counted before."""
    reason: str = ""
    """Why it is in this state: one CamelCase word."""
    message: Annotated[str, Field(max_length=1024)] = ""
    """Human-readable explanation of the reason."""
    progress: Progress | None = None
    """Progress of the stage while it runs."""

    @property
    def waiting(self) -> WaitingReason | None:
        """What it waits for; None: for nothing, or its turn has not come."""
        if self.state is AttemptState.AWAITING_APPROVAL:
            return WaitingReason.AWAITING_APPROVAL
        if self.state in (AttemptState.PENDING, AttemptState.RUNNING):
            return WaitingReason(self.reason) if self.attempt and self.reason in _WAITING_WORDS else None
        if self.retry_after is not None and not self.given_up:
            return WaitingReason.BACKOFF
        return None

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out what says nothing: 20 iterations have to fit into 80 KiB."""
        written: dict[str, Any] = handler(self)
        for name, field in type(self).model_fields.items():
            if name not in ("iteration", "name", "state") and getattr(self, name) == field.default:
                written.pop(name, None)
                written.pop(field.alias or name, None)
        return written


class ModelPointer(Model):
    """Where the newest model of a kind lies."""

    iteration: int
    """Iteration in which the model was trained."""
    stage: StageName
    """Stage by which the model was trained."""
    digest: str
    """Output digest of the artifact that holds the model."""


class Models(Model):
    """The newest models of the loop."""

    reward: ModelPointer | None = None
    """Newest promoted version of R, the reward model."""
    policy: ModelPointer | None = None
    """Newest version of π, the policy."""


class MetricScore(Model):
    """A checkpoint's scores on the validation split: beside the fields below one for each metric that may decide."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float] = Field(init=False)

    iteration: int
    """Iteration of the checkpoint; 0 is the base model."""
    checkpoint: Literal["base", "sft", "grpo"]
    """Checkpoint that was measured: base, sft or grpo."""
    split: Literal["validation"] = "validation"
    """Always validation: a benchmark never decides."""

    @classmethod
    def of(cls, iteration: int, checkpoint: str, values: Mapping[str, float]) -> Self:
        """The scores of a checkpoint.

        Args:
            iteration: that made it.
            checkpoint: base, sft or grpo.
            values: by the metrics' names.
        """
        return cls.model_validate({"iteration": iteration, "checkpoint": checkpoint, **values})

    def value(self, metric: str) -> float | None:
        """The score by this metric; None: it was not measured."""
        return self.__pydantic_extra__.get(metric)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """With a property for each metric: a structural schema allows no others."""
        document = handler.resolve_ref_schema(handler(core))
        del document["additionalProperties"]
        document["properties"] |= {
            metric.name: {"type": "number", "description": metric.sentence} for metric in deciding()
        }
        return document


class Usage(Model):
    """What the cycle has cost so far."""

    gpu_seconds: float = 0.0
    """GPUs times seconds, all attempts."""
    wasted_gpu_seconds: Annotated[float, Field(alias="wastedGPUSeconds")] = 0.0
    """Of these, lost with attempts that did not end well."""
    generator_usd: Annotated[float, Field(alias="generatorUSD")] = 0.0
    """Paid to the generator's provider."""
    app_retries: int = 0
    """Attempts lost to application errors."""
    infra_restarts: int = 0
    """Attempts lost to the infrastructure."""
    reused_stages: int = 0
    """Stages whose result was already there."""


class CycleStatus(Model):
    """What the planner remembers of a cycle. Always below 80 KiB."""

    observed_generation: int = 0
    """Generation of the spec that this status is about."""
    phase: Phase = Phase.PENDING
    """Short form of the state for display; automation should use the conditions."""
    conditions: Annotated[list[Condition], Field(max_length=16), Keyed(("type",))] = []
    """WorkspaceReady, Progressing, Suspended, Complete, Failed, what kstatus reads (Ready, Reconciling, Stalled), and
    SpecApplied."""
    iteration: int = 0
    """Newest iteration that has started."""
    summary: str = ""
    """Summary of the state in one line, for display."""
    stages: Annotated[list[StageStatus], Field(max_length=256), Keyed(("iteration", "name"))] = []
    """All unfinished stages and the two newest iterations in full; older ones shortened."""
    specs: Annotated[list[str], Field(max_length=256)] = []
    """The specs that stages were made with, oldest first, each as its user wrote it, as JSON, without the fields that
    only say where and when stages run. Empty: an earlier version made them, or the spec is very long."""
    models: Models = Models()
    """Pointers to the newest models of the loop."""
    scores: Annotated[list[MetricScore], Field(max_length=64)] = []
    """Scores of all checkpoints on the validation split so far."""
    best: MetricScore | None = None
    """Checkpoint with the best score on the validation split so far."""
    usage: Usage = Usage()
    """What the cycle has cost so far: GPU time, money, attempts."""
    start_time: datetime | None = None
    """Time at which the cycle's first stage started."""
    completion_time: datetime | None = None
    """Time at which the run ended."""
    finished_iterations: int = 0
    """`spec.iterations` when it ended; more than that reopens it."""
    active_seconds: float = 0.0
    """Life so far without the time suspended; what activeDeadlineSeconds is about."""
    active_since: datetime | None = None
    """Since when the clock of active_seconds runs; absent while suspended."""
    restart_tokens: list[str] = []
    """restartFrom tokens that have acted."""
