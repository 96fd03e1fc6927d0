"""Every stage of a cycle rendered once, before anything of it is paid for."""

from __future__ import annotations

from typing import Any

from medgr2_api.accelerators import gpus, unknown_devices
from medgr2_api.cycle import Cycle, CycleSpec
from medgr2_api.stage_contract import CycleRef, StageRequest
from medgr2_api.stages import GRPO, SFT, definition
from medgr2_api.training_spec import Attention

from ..plan.scheduling import job_name
from ..plan.spec_cache import cached_spec
from ..plan.types import AttemptKey, JobCreate, StageKey
from . import pvc
from .containers import has_accelerators
from .job import job
from .render_context import RenderError, RenderSettings

_BUILTIN = "builtin://"
_NO_ACCELERATOR = (
    "this stage computes with a model and has no GPU: ask for one ({limits: {nvidia.com/gpu: 1}}), or, if the model is"
    " so small, say what it shall have without one ({requests: {cpu: 8, memory: 32Gi}})"
)
_NO_FLASH = (
    "policy.loading.attention is FlashAttention2, which needs a GPU, and this stage has none: ask for one ({limits:"
    " {nvidia.com/gpu: 1}}), or use SDPA"
)


def unrenderable(cycle: Cycle, settings: RenderSettings) -> list[RenderError]:
    """What keeps stages of the cycle from being rendered, each once.

    Args:
        cycle: valid by itself.
        settings: the operator's.
    """
    pvc.claim(cycle)
    errors: dict[str, RenderError] = {}
    for key in _stages(cycle):
        for collect in (False, True):
            try:
                *_, made = job(cycle, _create(cycle, key, collect), settings)
                if not collect:
                    _check_devices(cycle, key, made)
            except RenderError as error:
                errors.setdefault(str(error), error)
    return list(errors.values())


def without_accelerator(cycle: Cycle, settings: RenderSettings) -> list[RenderError]:
    """Stages that would compute with a model of real size on a processor though nobody said so: that takes months, and
    shows when the generator has been paid.

    Args:
        cycle: one that can be rendered.
        settings: the operator's.
    """
    errors = []
    for key in _stages(cycle):
        if not (why := _why_a_gpu(cycle.spec, key.name)):
            continue
        *_, made = job(cycle, _create(cycle, key, collect=False), settings)
        if not any(has_accelerators(c.get("resources") or {}) for c in made["spec"]["template"]["spec"]["containers"]):
            errors.append(RenderError(f"spec.stages[{key.name}].resources", why))
    return errors


def _why_a_gpu(spec: CycleSpec, name: str) -> str:
    """Why a stage cannot do without a GPU; empty: it can."""
    flash = spec.policy.loading.attention is Attention.FLASH_ATTENTION_2
    if flash and name in (SFT.name, GRPO.name):
        return _NO_FLASH
    builtin = all(base.startswith(_BUILTIN) for base in (spec.policy.base_model, spec.reward_model.base_model))
    told = builtin or not definition(name).computes or spec.stage(name).resources
    return "" if told else _NO_ACCELERATOR


def _stages(cycle: Cycle) -> list[StageKey]:
    """Each stage that the cycle has, in the last iteration that has it."""
    graph = cached_spec(cycle.metadata.name, cycle.spec).graph(cycle.spec.iterations)
    return list({node.key.name: node.key for node in graph}.values())


def _check_devices(cycle: Cycle, key: StageKey, made: dict[str, Any]) -> None:
    """Refuses devices that a patch has added where a budget counts them by the spec.

    Raises:
        RenderError: the Job has other devices than the stage's `resources`.
    """
    budget, stage = cycle.spec.budget, cycle.spec.stage(key.name)
    if budget.gpu_hours is None:
        return
    pod = made["spec"]["template"]["spec"]
    given = [one.get("resources") or {} for one in (*(pod.get("initContainers") or ()), *pod["containers"])]
    unknown = any(unknown_devices(resources, budget.gpus_per) for resources in given)
    number = sum(gpus(resources, budget.gpus_per) for resources in given)
    if unknown or number != gpus(stage.resources, budget.gpus_per):
        raise RenderError(
            f"spec.stages[{key.name}].patches",
            "patches have changed the devices, and budget.gpuHours counts those of stages[].resources: give them there",
        )


def _create(cycle: Cycle, key: StageKey, collect: bool) -> JobCreate:
    """The first attempt of a stage, as the planner would make it; what it reads is not known yet."""
    metadata, known = cycle.metadata, cached_spec(cycle.metadata.name, cycle.spec)
    attempt = AttemptKey(key.iteration, key.name, "", 1)
    request = StageRequest.model_construct(
        cycle=CycleRef.model_construct(name=metadata.name, namespace=metadata.namespace, uid=metadata.uid),
        iteration=key.iteration,
        stage=key.name,
        attempt=1,
        input_hash="0" * 64,
        parameters=known.parameters(key.name, key.iteration).dump(),
        collect=collect,
    )
    name = job_name(metadata.name, metadata.uid, attempt)
    return JobCreate(attempt, name, request, cycle.spec.stage(key.name).shards)
