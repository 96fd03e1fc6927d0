"""Code of other packages that a cycle names. The stages' image has it installed; the operator need not."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from .model import Model
from .types import FreeForm


class PluginGroup(StrEnum):
    """Entry-point groups in which packages offer what they bring."""

    PROVIDERS = "medgr2.providers"
    READERS = "medgr2.readers"
    REWARDS = "medgr2.rewards"
    CURATION_RULES = "medgr2.curation_rules"


class PluginRef(Model):
    """Code of another package, which the image of the stages must have installed."""

    name: Annotated[str, Field(max_length=63, pattern="^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")]
    """Name of the plugin's entry point, as its package registers it."""
    version: Annotated[str, Field(min_length=1, max_length=64)]
    """Version of the package that brings it. Another version is other code: a stage that finds another one refuses."""
    options: FreeForm = {}
    """Passed to it as keyword arguments."""
