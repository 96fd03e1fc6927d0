"""TRL's LM head on a processor without Triton.

With Triton, TRL 1.16 scores the supervised positions only; without, every position of the batch, lest compilers for
other accelerators meet a new shape in each batch. On a CPU nothing is compiled and the prompt is most of the batch:
scoring it takes a third of an SFT step, and changes neither loss nor gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from trl.trainer import utils

from . import registry


def apply(device: torch.device) -> None:
    """Has TRL's trainers leave out, on the CPU too, the positions whose label is -100.

    Args:
        device: where the model is.
    """
    if registry.TRL_HEAD.applies(device):
        registry.replace(utils, "_use_triton", _supervised_only)


def _supervised_only(original: Callable[[torch.device], bool], device: torch.device) -> bool:
    return device.type == "cpu" or original(device)
