"""How a model is held while it is trained (`policy.loading`): precision, attention, 4 bits a weight, a frozen tower."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig

from medgr2_api.model_families import ADAPTED, VISION_TOWER
from medgr2_api.training_spec import Attention, ModelLoading, Precision

from ..errors import ConfigError

FIELD = "policy.loading"

#: By their names in transformers.
_ATTENTION = {
    Attention.SDPA: "sdpa",
    Attention.FLASH_ATTENTION_2: "flash_attention_2",
    Attention.EAGER: "eager",
}


def bfloat16(loading: ModelLoading) -> bool:
    """Whether matrix products are in bfloat16."""
    return torch.cuda.is_available() if loading.precision is None else loading.precision is Precision.BFLOAT16


def attention(wanted: Attention) -> str:
    """transformers' name of it.

    Raises:
        ConfigError: it needs a GPU or a package, and there is none here.
    """
    if wanted is Attention.FLASH_ATTENTION_2:
        if not torch.cuda.is_available():
            raise ConfigError(f"{FIELD}.attention: {wanted} needs a GPU, and there is none here: leave it out")
        _needs("flash_attn", "flash-attn", f"{FIELD}.attention: {wanted}")
    return _ATTENTION[wanted]


def check(loading: ModelLoading) -> None:
    """Raises what `attention` and `quantization` would, before any model is there.

    Raises:
        ConfigError: what they need is not here.
    """
    attention(loading.attention)
    if loading.quantization is not None:
        _needs_bitsandbytes()


def quantization(folder: Path, dtype: torch.dtype) -> BitsAndBytesConfig:
    """QLoRA's way to load the model in a folder: what adapters sit on has 4 bits a weight, all else is as it was.

    Args:
        folder: of a whole model.
        dtype: precision of the matrix products, for which a layer's weights are unpacked.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    _needs_bitsandbytes()
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        bare = AutoModelForImageTextToText.from_config(config)
    linear = (name for name, part in bare.named_modules() if isinstance(part, nn.Linear))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[name for name in linear if not re.fullmatch(ADAPTED, name)],
    )


def freeze_vision_tower(model: Any) -> None:
    """Takes the tower's weights from what learns; what joins it to the language model learns on."""
    for name, weight in model.named_parameters():
        if re.fullmatch(VISION_TOWER, name):
            weight.requires_grad_(False)


def _needs_bitsandbytes() -> None:
    _needs("bitsandbytes", "medgr2[quantization]", f"{FIELD}.quantization")


def _needs(module: str, package: str, what: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ConfigError(
            f"{what} needs a package that is not installed here: `pip install '{package}'` beside MedGR2 "
            "(on a cluster: in the image of template.image), or leave it out"
        )
