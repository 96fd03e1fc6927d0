"""What reward model, policy and students share in a cycle's spec: fine-tuning, how a model is held, and the form of
answers.

A field whose value a preset owns is optional and has no default here: `presets.py` fills it in, and the model's
`Resolved` form, which follows it, requires it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .hashing import Since
from .model import ApiEnum, Model
from .types import FreeForm, Positive, ProperFraction


class LoRA(Model):
    """Low-rank adapters instead of full fine-tuning."""

    rank: Annotated[int, Field(ge=0, le=1024)]
    """Rank r of the adapters; 0: full fine-tuning, whatever the preset says."""
    alpha: Positive | None = None
    """Scale of the adapters' update; default: twice the rank."""
    dropout: ProperFraction = 0.0
    """Dropout probability on the adapters' input."""


class FullFineTuning(LoRA):
    """No adapters: every weight learns."""

    rank: Literal[0]


class Adapters(LoRA):
    """The weights stay; adapters beside them learn."""

    rank: Annotated[int, Field(ge=1, le=1024)]
    alpha: Positive


ResolvedLoRA = FullFineTuning | Adapters


class Precision(ApiEnum):
    """What a training computes in; weights that learn, and Adam's moments, are float32 in any case."""

    BFLOAT16 = "BFloat16"
    """Matrix products in bfloat16 (autocast), and in it the base under adapters."""
    FLOAT32 = "Float32"


class Attention(ApiEnum):
    """How attention is computed: names of transformers' `attn_implementation`."""

    SDPA = "SDPA"
    """PyTorch's own, which takes a fused kernel where there is one."""
    FLASH_ATTENTION_2 = "FlashAttention2"
    """The package flash-attn, on a GPU of NVIDIA's Ampere or later."""
    EAGER = "Eager"
    """Products of matrices one after another: slow, and without surprises."""


class Quantization(ApiEnum):
    """What the linear layers under adapters are stored in while adapters learn."""

    NF4 = "NF4"
    """QLoRA: 4 bits a weight in the normal distribution's quantiles, their scales quantized again (Dettmers et al.,
    2023, arXiv 2305.14314), by bitsandbytes."""


class ModelLoading(Model):
    """How the trainings of a policy hold the model."""

    precision: Precision | None = None
    """BFloat16 or Float32; absent: BFloat16 on a GPU, Float32 without one."""
    attention: Attention = Attention.SDPA
    """SDPA, FlashAttention2 or Eager."""
    quantization: Quantization | None = None
    """NF4: the language model under adapters has 4 bits a weight; the vision tower stays as it is, for it breaks.
    What is published stands on the base as it was fetched, which is what readers merge or serve the adapters with.
    Absent: none."""
    freeze_vision_tower: Annotated[bool | None, Since(False)] = None
    """Where all weights are trained (rank 0): whether the vision tower stays as it is; what joins it to the language
    model learns. Adapters never change the tower. Absent: true, but false in the presets Paper, MedR1 and Tiny."""


BY_DEFAULT = ModelLoading()


class InitFrom(ApiEnum):
    """Where the training of each iteration starts: at the base model, or at the model of the iteration before."""

    BASE = "Base"
    PREVIOUS = "Previous"


class AnswerFormat(ApiEnum):
    """What stands between <answer> and </answer>."""

    LETTER = "Letter"
    OPTION_TEXT = "OptionText"


class Training(Model):
    """Supervised fine-tuning on D_gen."""

    lora: LoRA | None = None
    """LoRA adapters to train; rank 0: all weights are fine-tuned. Absent: as the preset says."""
    learning_rate: Positive | None = None
    """Peak learning rate of the schedule."""
    num_epochs: Positive | None = None
    """Number of passes over the training data."""
    trainer: FreeForm = {}
    """Further trl.SFTConfig fields, less those the contract owns."""


class ResolvedTraining(Training):
    """With everything that the presets own."""

    lora: ResolvedLoRA
    learning_rate: Positive
    num_epochs: Positive
