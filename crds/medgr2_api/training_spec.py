"""What reward model, policy and students share in a cycle's spec: fine-tuning, and the form of answers.

A field whose value a preset owns is optional and has no default here: `presets.py` fills it in, and the model's
`Resolved` form, which follows it, requires it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

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
