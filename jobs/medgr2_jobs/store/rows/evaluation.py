"""What checkpoints answer to the benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from . import Split, TableRow


class EvalCondition(StrEnum):
    """What a checkpoint is shown when it is measured: the real image, or a control that takes information away."""

    REAL = "real"
    BLANK = "blank"
    """Mid grey of the same size: neither content nor tint is left."""
    SHUFFLED = "shuffled"
    """Another image of the same set and, where there is one, of the same modality."""
    OPTIONS_ONLY = "options_only"
    """The options alone: no image and no question."""
    OPTION_PRIOR = "option_prior"
    """No model: how often each option text is right in the training split."""
    CHANCE = "chance"
    """Nothing at all: one over the number of options."""


class Scoring(StrEnum):
    """How an answer is read from a model."""

    GREEDY = "greedy"
    """What it writes at temperature 0."""
    OPTION_LOGPROB = "option_logprob"
    """The offered option that it finds likeliest."""


@dataclass(frozen=True, slots=True)
class Prediction(TableRow):
    """A checkpoint's answer to one question under one condition."""

    TABLE = "predictions"
    VERSION = 1

    checkpoint: str
    """base, sft or grpo."""
    split: Split
    benchmark: str
    item_id: str
    image_sha256: str
    modality: str
    question_type: str
    condition: EvalCondition
    scoring: Scoring
    answer_index: int
    predicted: int | None
    """Option that it chose; null: none could be read."""
    correct: bool
    option_logprobs: tuple[float, ...]
    text: str
