"""How many GPUs a container's resources are: for `budget.gpuHours`, and for the processes of a training.

Devices have names of their vendors', and parts of a device are devices, too. What no pattern below knows is not
guessed: with a budget the user says it (`budget.gpusPer`), without one it counts nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .kubernetes_fragments import is_extended, quantity

#: Resources of which each unit is one device; one that is shared by time is counted as a whole.
_WHOLE = re.compile(
    r"nvidia\.com/gpu(\.shared)?"
    r"|amd\.com/gpu"
    r"|gpu\.intel\.com/(i915|xe)"
    r"|habana\.ai/gaudi"
    r"|google\.com/tpu"
    r"|aws\.amazon\.com/(neuron|neurondevice)"
    r"|huawei\.com/Ascend[0-9A-Za-z]+"
)
#: NVIDIA's MIG: `mig-3g.40gb` has three of the seven compute slices of a GPU.
_MIG = re.compile(r"nvidia\.com/mig-([1-7])g\.[0-9]+gb(\+[a-z.]+)?(\.shared)?")
_MIG_SLICES = 7
#: Devices that compute nothing: network, virtualisation, and what lies in memory.
_NONE = re.compile(
    r"(rdma|mellanox\.com|nvidia\.com/(hostdev|resibp.*|mlnx.*)|openshift\.io|networking\.gke\.io"
    r"|vpc\.amazonaws\.com|devices\.kubevirt\.io|smarter-devices)(/.*)?"
)


def gpus(resources: Mapping[str, Any], gpus_per: Mapping[str, float]) -> float:
    """GPUs of a container with these resources; what nobody knows counts nothing.

    Args:
        resources: as in a container.
        gpus_per: the user's `budget.gpusPer`.
    """
    return sum(number * (weight(name, gpus_per) or 0.0) for name, number in _devices(resources))


def whole_gpus(resources: Mapping[str, Any], gpus_per: Mapping[str, float]) -> int:
    """GPUs of a container that are its own and whole: of which a training can have one for each of its processes.

    A part of a GPU, and one that is shared by time, may lie on the same GPU as the next.
    """
    return sum(int(number) * _whole(name, gpus_per) for name, number in _devices(resources))


def _whole(name: str, gpus_per: Mapping[str, float]) -> int:
    if name.endswith(".shared") or _MIG.fullmatch(name):
        return 0
    return 1 if _WHOLE.fullmatch(name) else int(gpus_per.get(name, 0))


def unknown_devices(resources: Mapping[str, Any], gpus_per: Mapping[str, float]) -> list[str]:
    """Names of devices and claims of which nobody knows how many GPUs they are."""
    return [name for name, _ in _devices(resources) if weight(name, gpus_per) is None]


def weight(name: str, gpus_per: Mapping[str, float]) -> float | None:
    """GPUs of one unit of a resource, or of a claim; None: not known."""
    if name in gpus_per:
        return gpus_per[name]
    if _WHOLE.fullmatch(name):
        return 1.0
    if found := _MIG.fullmatch(name):
        return int(found[1]) / _MIG_SLICES
    return 0.0 if _NONE.fullmatch(name) else None


def _devices(resources: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Devices with their number: extended resources by name, and each claim to devices (DRA) by its own."""
    amounts = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
    for name, amount in amounts.items():
        if is_extended(name):
            yield name, float(quantity(amount) or 0)
    for claim in resources.get("claims") or ():
        yield str(claim["name"]), 1.0
