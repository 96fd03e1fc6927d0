"""The parts of a cycle's spec that say where and when stages run."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from . import accelerators
from .cel_rules import Rule
from .kubernetes_fragments import (
    Affinity,
    Annotations,
    EnvFromSource,
    EnvVar,
    Labels,
    LocalObjectReference,
    Operation,
    PodSecurityContext,
    ResourceRequirements,
    Toleration,
)
from .metrics import MACRO_ACCURACY, DecidingMetric
from .model import ApiEnum, Model
from .stages import StageName, definition, listed, stage_names
from .stages.definition import Iterations


class OnExceeded(ApiEnum):
    """What happens when a budget is spent."""

    SUSPEND = "Suspend"
    FAIL = "Fail"


def _stages_of(iterations: Iterations) -> list[str]:
    return [name for name in stage_names() if definition(name).iterations is iterations]


_FIRST, _BOTH = _stages_of(Iterations.FIRST), _stages_of(Iterations.BOTH)


class StageRef(Model):
    """One stage of one iteration, such as grpo@2."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"self.stage in {_FIRST} ? self.iteration == 0 : self.iteration > 0 || self.stage in {_BOTH}",
            f"no such stage in this iteration: {listed(lambda s: s.iterations is Iterations.FIRST)} runs in iteration 0"
            f" only, and beside it there only {listed(lambda s: s.iterations is Iterations.BOTH)}",
            lambda r: definition(r.stage).iterations.include(r.iteration),
        ),
    )

    iteration: Annotated[int, Field(ge=0, le=20)]
    """Iteration; 0 for what runs once before the loop."""
    stage: StageName
    """Name of the stage, such as grpo."""


class RestartFrom(StageRef):
    """Run this stage, and all that depends on it, again. Acts once per new token."""

    token: Annotated[str, Field(min_length=1, max_length=32, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    """Any word not used before in this cycle; a new one makes it act again."""


class EarlyStopping(Model):
    """Stop iterating when the validation split no longer improves. Never reads a benchmark."""

    metric: DecidingMetric = MACRO_ACCURACY.name
    """Validation metric that has to improve for the loop to go on."""
    min_delta: Annotated[float, Field(ge=0)] = 0.002
    """Smallest change that counts as an improvement."""
    patience: Annotated[int, Field(ge=1)] = 2
    """Iterations without improvement before stopping."""


class Budget(Model):
    """What the cycle may cost."""

    gpu_hours: Annotated[float | None, Field(gt=0)] = None
    """GPUs times hours of all stages; absent: no limit."""
    gpus_per: dict[str, Annotated[float, Field(ge=0)]] = {}
    """How many GPUs one unit of a resource is, or a claim to devices by its name, where it is not known or counted
    otherwise: `{nvidia.com/mig-1g.10gb: 0.2, my-claim: 2}`."""
    generator_usd: Annotated[float | None, Field(gt=0, alias="generatorUSD")] = None
    """Money spent at the generator's provider; absent: no limit."""
    on_exceeded: OnExceeded = OnExceeded.SUSPEND
    """Suspend (go on after the budget was raised) or Fail."""


#: A name that becomes the value of a label; what else a label asks for, rendering checks.
LabelValue = Annotated[str, Field(max_length=63)]


class Queueing(Model):
    """Kueue. Absent: plain scheduling."""

    queue_name: LabelValue
    """Name of Kueue's LocalQueue that the stages are submitted to."""
    workload_priority_class_name: LabelValue = ""
    """Priority of stages that have not started."""
    in_flight_priority_class_name: LabelValue = ""
    """Priority of attempts that go on from a checkpoint."""


class FailurePolicy(Model):
    """How often a stage is tried again."""

    max_retries: Annotated[int, Field(ge=0, le=100)] = 3
    """Tries after application errors (a crash, out of memory)."""
    max_infra_restarts: Annotated[int, Field(ge=0, le=10000)] = 50
    """Restarts after failures of the infrastructure (a node lost, a pod evicted)."""
    backoff_seconds: Annotated[float, Field(ge=0)] = 10
    """Wait before the first retry; doubles each time."""
    max_backoff_seconds: Annotated[float, Field(ge=0)] = 600
    """Longest wait between two attempts, in seconds."""
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 900
    """A training writes a checkpoint when the last one is this old, beside those at each fifth of it; nothing that it
    publishes depends on it."""
    stall_seconds: Annotated[float, Field(gt=0)] = 1800
    """A training in which no step ends for this long prints what each thread is doing, and is tried again."""


class PodTemplate(Model):
    """Template of every stage's pod: image, environment, placement."""

    image: str = ""
    """Container image; empty: the operator's default."""
    image_pull_secrets: Annotated[list[LocalObjectReference], Field(max_length=32)] = []
    """Secrets with which the image is pulled, as in a pod."""
    service_account_name: str = ""
    """ServiceAccount of the pods; empty: the namespace's default, without a token."""
    labels: Labels = {}
    """Further labels of the pods, such as those that keep an injector of sidecars away."""
    annotations: Annotations = {}
    """Annotations that every stage's pod gets."""
    env: Annotated[list[EnvVar], Field(max_length=64)] = []
    """Environment variables, as in a container; secrets by reference only."""
    env_from: Annotated[list[EnvFromSource], Field(max_length=32)] = []
    """ConfigMaps and Secrets that environment variables are taken from, as in a container."""
    node_selector: Labels = {}
    """Labels that a node must have to run the pods, as in a pod."""
    tolerations: Annotated[list[Toleration], Field(max_length=64)] = []
    """Taints of nodes that the pods tolerate, as in a pod."""
    affinity: Affinity = {}
    """Which nodes and neighbours the pods prefer or need, as in a pod."""
    security_context: PodSecurityContext = {}
    """Security context of the pods, which is merged over the restricted defaults."""
    termination_grace_period_seconds: Annotated[int, Field(ge=10, le=86400)] = 300
    """Time a stage has to write its checkpoint."""
    patches: Annotated[list[Operation], Field(max_length=64)] = []
    """RFC 6902 operations on the rendered Job; the last word about its pods."""


#: Training processes that a pod may have.
MAX_PROCESSES = 64


class DeepSpeed(ApiEnum):
    """DeepSpeed ZeRO stages."""

    ZERO2 = "Zero2"
    ZERO3 = "Zero3"


class StageSettings(Model):
    """Settings of one stage that differ from those of the cycle."""

    name: StageName
    """Name of the stage, such as grpo."""
    enabled: bool = True
    """false takes the stage out, and what only it feeds."""
    shards: Annotated[int, Field(ge=1, le=1000)] = 1
    """Parts that run side by side, where the stage can be divided."""
    num_nodes: Annotated[int, Field(ge=1, le=1000)] = 1
    """Number of pods (nodes) that one distributed training runs on."""
    num_proc_per_node: Annotated[int | None, Field(ge=1, le=MAX_PROCESSES)] = None
    """Number of training processes in each pod; absent: one for each GPU of `resources`."""
    resources: ResourceRequirements = {}
    """CPU, memory and GPUs of the stage, as in a container."""
    deepspeed: DeepSpeed | None = None
    """Shard the optimizer (Zero2) or also the parameters (Zero3); absent: neither."""
    timeout_seconds: Annotated[int | None, Field(ge=1)] = None
    """Longest run of one attempt; absent: no limit."""
    pending_deadline_seconds: Annotated[int | None, Field(ge=1)] = None
    """Longest wait to be scheduled; default: the cycle's."""
    queue_name: LabelValue | None = None
    """LocalQueue of this stage; default: the cycle's."""
    image: str | None = None
    """Container image of this stage; absent: the template's."""
    node_selector: Labels | None = None
    """Labels that a node must have to run this stage; absent: the template's."""
    tolerations: Annotated[list[Toleration] | None, Field(max_length=64)] = None
    """Taints of nodes that this stage tolerates; absent: the template's."""
    patches: Annotated[list[Operation], Field(max_length=64)] = []
    """RFC 6902 operations on this stage's Job, after the template's."""

    def processes(self, budget: Budget) -> int:
        """Training processes in each pod. A stage that cannot divide its training has one, whatever it has of GPUs."""
        if self.num_proc_per_node is not None:
            return self.num_proc_per_node
        gpus = accelerators.whole_gpus(self.resources, budget.gpus_per) if definition(self.name).distributed else 0
        return min(max(1, gpus), MAX_PROCESSES)

    def gpus(self, budget: Budget) -> float:
        """GPUs of one attempt, without its shards: those of a pod times the pods."""
        return accelerators.gpus(self.resources, budget.gpus_per) * self.num_nodes
