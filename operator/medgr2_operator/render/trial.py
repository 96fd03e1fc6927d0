"""Every stage of a cycle rendered once, before anything of it is paid for."""

from __future__ import annotations

from typing import Any

from medgr2_api.accelerators import gpus, unknown_devices
from medgr2_api.cycle import Cycle
from medgr2_api.stage_contract import CycleRef, StageRequest

from ..plan.scheduling import job_name
from ..plan.spec_cache import cached_spec
from ..plan.types import AttemptKey, JobCreate, StageKey
from . import pvc
from .job import job
from .render_context import RenderError, RenderSettings


def unrenderable(cycle: Cycle, settings: RenderSettings) -> list[RenderError]:
    """What keeps stages of the cycle from being rendered, each once.

    Args:
        cycle: valid by itself.
        settings: the operator's.
    """
    pvc.claim(cycle)
    errors: dict[str, RenderError] = {}
    graph = cached_spec(cycle.metadata.name, cycle.spec).graph(cycle.spec.iterations)
    for key in {node.key.name: node.key for node in graph}.values():
        for collect in (False, True):
            try:
                *_, made = job(cycle, _create(cycle, key, collect), settings)
                if not collect:
                    _check_devices(cycle, key, made)
            except RenderError as error:
                errors.setdefault(str(error), error)
    return list(errors.values())


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
