"""The part of a cycle's spec that says what is measured beside the accuracy of its checkpoints."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .cel_rules import Keyed
from .model import ApiEnum, Model


class Control(ApiEnum):
    """What else is measured, so that a score can be believed."""

    BLANK_IMAGE = "BlankImage"
    SHUFFLED_IMAGE = "ShuffledImage"
    OPTIONS_ONLY = "OptionsOnly"
    OPTION_PRIOR = "OptionPrior"


class Evaluation(Model):
    """How checkpoints are evaluated: benchmarks, controls, scoring."""

    controls: Annotated[list[Control], Field(max_length=4), Keyed()] = list(Control)
    """Controls beside the real measurement; chance is always shown."""
