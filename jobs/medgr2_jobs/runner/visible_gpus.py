"""A stage that runs in one process sees one GPU.

Where transformers' Trainer finds several GPUs in one process, it wraps the model in torch's DataParallel, which cuts
every tensor of a batch into as many parts by its first dimension. Patches of images lie there one after the other, not
one row an example: an image would be torn apart, and nothing would say so.

The processes of torchrun see all GPUs of their pod, each with its own made the current one: accelerate and DeepSpeed
name devices by the local rank.
"""

from __future__ import annotations

from collections.abc import MutableMapping

_CUDA, _HIP = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"


def keep_one(variables: MutableMapping[str, str]) -> None:
    """Leaves the first of the GPUs that are visible; before torch has looked for them.

    Args:
        variables: of this process (`os.environ`). AMD's runtime reads NVIDIA's variable, too, unless it has its own.
    """
    given = [name for name in (_CUDA, _HIP) if name in variables]
    for name in given:
        variables[name] = variables[name].split(",")[0].strip()
    if not given:
        variables[_CUDA] = "0"
