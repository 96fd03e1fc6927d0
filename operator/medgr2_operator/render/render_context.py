"""The input of rendering, settings and attempt, and its error."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from medgr2_api.cycle import Cycle
from medgr2_api.engine import Engine, VLLMEngine
from medgr2_api.rollout_gpus import RolloutShare, share
from medgr2_api.scheduling import PodTemplate, StageSettings
from medgr2_api.stages import definition
from medgr2_api.stages.generate import Provider
from medgr2_api.tracking import Tracking

from ..plan.types import JobCreate
from .cycle_policy import CyclePolicy


@dataclass(frozen=True)
class RenderSettings:
    """The operator's configuration of the objects it creates: what a spec does not say."""

    image: str
    """Image of the stages, where the cycle names none."""
    vllm_image: str = "vllm/vllm-openai:v0.32.0"
    """Image of the vLLM sidecar, where the cycle names none."""
    image_pull_policy: str = "IfNotPresent"
    """As in a container."""
    cpu_request: str = "1"
    """CPU of containers without GPUs whose stage says nothing about it."""
    memory_request: str = "2Gi"
    """Memory of containers without GPUs whose stage says nothing about it."""
    cpu_limit: str = "4"
    """CPU limit of those; empty: none."""
    memory_limit: str = "8Gi"
    """Memory limit of those; empty: none."""
    collect_cpu_request: str = "100m"
    """CPU of a pod that only reads a manifest."""
    collect_memory_request: str = "256Mi"
    """Memory of a pod that only reads a manifest."""
    collect_cpu_limit: str = "1"
    """CPU limit of such a pod."""
    collect_memory_limit: str = "2Gi"
    """Memory limit of such a pod."""
    user_id: int = 65532
    """User and group of the pods, where `template.securityContext` names none; the owner of new files."""
    progress_port: int = 8080
    """Where a stage serves `/progress` and `/metrics`."""
    policy: CyclePolicy = field(default_factory=CyclePolicy)
    """What the platform allows."""
    vllm_startup_seconds: int = 3600
    """Longest time a vLLM sidecar may take to load its model, download included."""

    @property
    def collect_resources(self) -> dict[str, Any]:
        """Resources of a pod that only reads."""
        return {
            "requests": {"cpu": self.collect_cpu_request, "memory": self.collect_memory_request},
            "limits": {"cpu": self.collect_cpu_limit, "memory": self.collect_memory_limit},
        }


class RenderError(ValueError):
    """The spec asks for an impossible manifest. Permanent until the spec is edited."""

    reason = "InvalidSpec"
    """Of the cycle's conditions."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path, self.message = path, message
        """Where in the cycle: `spec.template.patches[2]`; what is wrong there."""


class NotAllowedError(RenderError):
    """The spec asks for what the platform does not allow (`cycle_policy`)."""

    reason = "NotAllowed"


@dataclass(frozen=True)
class RenderContext:
    """A planned attempt, its cycle, and the operator's settings."""

    cycle: Cycle
    create: JobCreate
    settings: RenderSettings
    single_node: bool = False
    """Only the pods of one node can mount the volume at a time."""

    def __post_init__(self) -> None:
        if self.shards > 1 and self.nodes > 1:
            raise RenderError(f"{self.path}.shards", "a stage has shards or numNodes, not both: remove one of them")

    @property
    def path(self) -> str:
        """Where in the cycle the stage is described."""
        return f"spec.stages[{self.create.key.name}]"

    @property
    def collects(self) -> bool:
        """It only reads a manifest: no GPU, no other node, no model server, no secret."""
        return self.create.request.collect

    @property
    def template(self) -> PodTemplate:
        """What every stage's pod has."""
        return self.cycle.spec.template

    @cached_property
    def stage(self) -> StageSettings:
        """What is said about this stage."""
        return self.cycle.spec.stage(self.create.key.name)

    @property
    def shards(self) -> int:
        """Parts that run side by side, one pod each. A collecting attempt has them too: each has its own manifest."""
        return self.create.shards

    @property
    def nodes(self) -> int:
        """Pods of one torchrun."""
        return 1 if self.collects else self.stage.num_nodes

    @property
    def processes(self) -> int:
        """Processes in each pod."""
        return 1 if self.collects else self.shared.processes

    @cached_property
    def shared(self) -> RolloutShare:
        """How the pod's GPUs are shared out between training and vLLM."""
        return share(self.cycle.spec, self.create.key.name)

    @cached_property
    def provider(self) -> Provider | None:
        """The provider in the stage's request; None for a stage that calls none, also because a student of the loop
        answers everything."""
        request = self.create.request
        document, student = request.parameters.get("provider"), request.parameters.get("student")
        if student and "student" in request.inputs and student["share"] >= 1:
            return None
        return Provider.model_validate(document) if document and not self.collects else None

    @cached_property
    def engine(self) -> Engine | None:
        """Who answers for the policy in this stage; None: nobody is asked."""
        document = self.create.request.parameters.get("engine")
        return Engine.model_validate(document) if document and not self.collects else None

    @property
    def tracking(self) -> Tracking:
        """Who follows the stage's training."""
        return (None if self.collects else self.create.request.tracking) or Tracking()

    @property
    def policy_server(self) -> VLLMEngine | None:
        """The vLLM that serves the policy beside the stage; None: there is none."""
        beside = definition(self.create.key.name).only_asks or self.shared.served
        return self.engine.vllm if self.engine is not None and beside else None

    @property
    def has_sidecar(self) -> bool:
        """Whether a model server runs beside the stage."""
        generates = self.provider is not None and self.provider.about.beside_stage
        return generates or self.policy_server is not None

    @property
    def image(self) -> str:
        """The stage's image."""
        return self.stage.image or self.template.image or self.settings.image
