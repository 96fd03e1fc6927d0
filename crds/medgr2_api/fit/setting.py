"""What the stages of one cycle have in common: where each runs, how long a row is, and what holds a GPU."""

from __future__ import annotations

from dataclasses import dataclass

from medgr2_api.cycle import ResolvedSpec
from medgr2_api.kubernetes_fragments import quantity
from medgr2_api.rollout_gpus import share
from medgr2_api.scheduling import StageSettings
from medgr2_api.stages import EVALUATE, EVALUATE_GRPO, PREFERENCES, RELABEL

from . import gpus
from .assumptions import Assumptions
from .counts import DRAWN_PIXELS, Counts, DataSize
from .gpus import GPU
from .memory import Need
from .result import Hardware, ModelShapes, StageFit
from .shapes import ModelShape

#: A model larger than this is no toy: without a GPU it is refused.
REAL_SIZE = 5e8
#: Stages that ask the policy.
_ASKING = (RELABEL.name, PREFERENCES.name, EVALUATE.name, EVALUATE_GRPO.name)


@dataclass(frozen=True)
class StagePlace:
    """Where a stage runs."""

    settings: StageSettings
    gpus: float
    """That it holds, over all its pods and shards."""
    gpu: GPU | None
    limit: float
    """Bytes for one process: of its GPU, or its part of the pod's main memory; 0: not told."""
    host_limit: float
    per_node: int
    """Processes in each pod."""

    @property
    def processes(self) -> int:
        """Of one training, or of one shard."""
        return self.settings.num_nodes * self.per_node

    @property
    def on_gpu(self) -> bool:
        return self.gpu is not None


@dataclass(frozen=True)
class Setting:
    """A cycle, its models, its data, its machines, and what is assumed."""

    spec: ResolvedSpec
    models: ModelShapes
    data: DataSize
    hardware: Hardware
    known: Assumptions
    server: bool = False
    """Whether vLLM samples everywhere, on all GPUs of a stage; else as `policy.engine` says."""

    @property
    def asks_vllm(self) -> bool:
        """Whether stages that ask the policy start a vLLM for it, on their GPUs."""
        return self.server or self.spec.policy.engine.vllm is not None

    @property
    def asks_on_site(self) -> bool:
        """Whether they ask a server that runs already, on GPUs that the cycle does not hold."""
        return self.spec.policy.engine.server is not None and not self.server

    @property
    def counts(self) -> Counts:
        """Rows of an iteration."""
        return Counts.of(self.spec, self.data, self.known)

    def place(self, name: str) -> StagePlace:
        """Where a stage runs: on what it asks for, else on this computer's GPUs, else without."""
        settings = self.spec.stage(name)
        held = settings.gpus(self.spec.budget) * settings.shards
        labels = settings.node_selector if settings.node_selector is not None else self.spec.template.node_selector
        kind = self.hardware.gpu or gpus.named(gpus.ASSUMED)
        gpu: GPU | None = None
        per_node = share(self.spec, name).processes
        if held:
            gpu = gpus.of_resources(settings.resources, labels) or kind
        elif self.hardware.local_gpus:
            gpu = kind
            held = float(min(self.hardware.local_gpus, settings.num_nodes * per_node))
        told = quantity((settings.resources.get("limits") or {}).get("memory", ""))
        host = float(told) if told is not None else self.hardware.host_memory
        limit = gpu.memory if gpu is not None else host / per_node
        return StagePlace(settings, held, gpu, limit, host, per_node)

    def image_tokens(self, model: ModelShape) -> int:
        """Of a picture of `data.maxPixels`, or of one that is drawn."""
        return model.image_tokens(DRAWN_PIXELS if self.spec.data.drawn else self.spec.data.max_pixels)

    def prompt(self, model: ModelShape) -> int:
        """Tokens of a picture and a question."""
        return self.image_tokens(model) + round(self.known.prompt_tokens.value)

    def answer(self) -> float:
        """Tokens of a mean answer."""
        return self.known.answer_tokens.value

    def longest(self) -> int:
        """Tokens of a batch's longest answer, to which the others are padded."""
        return round(self.known.answer_tokens.value * self.known.longest_answer.value)

    def stage(
        self,
        name: str,
        place: StagePlace,
        need: Need,
        seconds: float,
        *,
        model: ModelShape | None,
        host: Need | None = None,
        advice: tuple[str, ...] = (),
    ) -> StageFit:
        """The result, with what stands out: no GPU for a large model, and GPUs that nothing uses."""
        problem, used = "", float(place.processes * place.settings.shards)
        if self.asks_vllm and name in _ASKING:  # it has them all
            used = place.gpus
        if model is not None and model.parameters > REAL_SIZE and not place.on_gpu:
            problem = f"{model.parameters / 1e9:.1f} G parameters without a GPU: it would take weeks"
            advice = (
                f"stages[{name}].resources: {{limits: {{nvidia.com/gpu: 1}}}}; or --gpus for those of this computer",
            )
        elif model is not None and place.gpus > used:
            idle = f"{place.gpus - used:g} of its {place.gpus:g} GPUs stand idle: it has {used:g} process(es)"
            advice = (*advice, idle)
        return StageFit(
            name=name,
            runs=self.spec.iterations,
            processes=place.processes,
            gpus=place.gpus,
            gpu=place.gpu,
            need=need,
            limit=place.limit,
            host=host,
            host_limit=place.host_limit,
            seconds=seconds,
            advice=advice,
            problem=problem,
        )
