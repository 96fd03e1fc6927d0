"""DeepSpeed ZeRO: optimizer state (Zero2) or also the weights (Zero3) divided up among the processes of a training."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from medgr2_api.scheduling import DeepSpeed

from ...errors import ConfigError
from .rendezvous import Rendezvous


def config() -> dict[str, Any] | None:
    """DeepSpeed's configuration for transformers, which fills in "auto"; None: not wanted.

    Raises:
        ConfigError: DeepSpeed is not installed.
    """
    zero_stage = Rendezvous.from_environment().deepspeed
    if zero_stage is None:
        return None
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            f"deepspeed: {zero_stage} needs the package deepspeed, which this image lacks: build it with the extra "
            "`distributed`, or leave deepspeed out of the stage's settings"
        )
    import torch

    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"  # read at its import
    import deepspeed

    # On CPUs a faster way between the processes of one computer, which every pod would compile anew.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # Zero3 shares weights out while they are loaded: it must know the other processes by then.
    deepspeed.init_distributed(torch.distributed.get_backend(), auto_mpi_discovery=False, verbose=False)
    return {
        "zero_optimization": {
            "stage": 3 if zero_stage is DeepSpeed.ZERO3 else 2,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "bf16": {"enabled": "auto"},
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
    }


@contextmanager
def whole(args: Any) -> Iterator[None]:
    """Models that are loaded in this block are not shared out by Zero3: each process has all of them.

    Args:
        args: the trainer's.
    """
    shared = getattr(args, "hf_deepspeed_config", None)  # transformers sets it with DeepSpeed only
    if shared is None:
        yield
        return
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(shared)
