"""What the stages do with the GPUs that they ask for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from .accelerators import whole_gpus
from .cycle import CycleSpec
from .rollout_gpus import share
from .scheduling import StageSettings
from .stages import definition


def remarks(spec: CycleSpec) -> Iterator[str]:
    """One sentence for each kind of use: which stages train in how many processes, and which leave GPUs idle."""
    found: dict[str, list[str]] = defaultdict(list)
    for stage in spec.stages:
        if stage.enabled and (remark := _remark(spec, stage)):
            found[remark].append(stage.name)
    for remark, names in found.items():
        yield f"{', '.join(names)}: {remark}"


def _remark(spec: CycleSpec, stage: StageSettings) -> str:
    about, budget = definition(stage.name), spec.budget
    gpus, shared = whole_gpus(stage.resources, budget.gpus_per), share(spec, stage.name)
    processes = shared.processes
    if not about.computes or gpus < 2:
        return ""
    if not about.distributed:
        return f"one process, which uses one of the {gpus} GPUs of its pod"
    if shared.server and processes + shared.server == gpus:
        return f"{processes} processes, one for each GPU that trains; a vLLM has the other {shared.server} and samples"
    if processes > gpus:
        return f"numProcPerNode is {processes}, and the pod has {gpus} GPUs: each process needs one of its own"
    if processes < gpus:
        return f"numProcPerNode is {processes}, and {gpus - processes} of the {gpus} GPUs of the pod stay idle"
    several = f" on each of {stage.num_nodes} nodes" if stage.num_nodes > 1 else ""
    return f"{processes} processes{several}, one for each GPU"
