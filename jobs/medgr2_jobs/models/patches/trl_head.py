"""TRL's LM head on a processor without Triton.

With Triton, TRL 1.16 scores the supervised positions only; without, every position of the batch, lest compilers for
other accelerators meet a new shape in each batch. On a CPU nothing is compiled and the prompt is most of the batch:
scoring it takes a third of an SFT step, and changes neither loss nor gradient.
"""

from __future__ import annotations

import torch
from trl.trainer import utils


def score_supervised_only() -> None:
    """Has TRL's trainers leave out, on the CPU too, the positions whose label is -100."""
    original = utils._use_triton
    if getattr(original, "medgr2", False):
        return

    def compact(device: torch.device) -> bool:
        return device.type == "cpu" or original(device)

    compact.medgr2 = True  # type: ignore[attr-defined]
    utils._use_triton = compact
