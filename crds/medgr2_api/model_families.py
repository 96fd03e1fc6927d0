"""The families of vision-language models that can be trained, by `model_type` of their `config.json`.

A family is in this table when its tiny model goes through every stage in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """What has to be known of a family beside its configuration."""

    title: str
    """As people call it."""
    counts_grid: bool = False
    """Its image tokens are counted from the grid of patches (Qwen2-VL's way): the shortcuts of `models.patches`, packed
    options and image-grouped scoring are made for these. All others go the plain way."""


FAMILIES: dict[str, Family] = {
    "qwen2_vl": Family("Qwen2-VL", counts_grid=True),
    "qwen2_5_vl": Family("Qwen2.5-VL", counts_grid=True),
    "qwen3_vl": Family("Qwen3-VL", counts_grid=True),
    "gemma3": Family("Gemma 3, MedGemma"),
    "internvl": Family("InternVL (the -hf repositories)"),
    "llava_onevision": Family("LLaVA-OneVision"),
    "idefics3": Family("Idefics3, SmolVLM"),
}


def refusal(config: Mapping[str, Any]) -> str | None:
    """Why a model with this `config.json` cannot be used; None: its family is supported."""
    found = config.get("model_type")
    if found in FAMILIES:
        return None
    hint = "; take the repository that ends in -hf" if found == "internvl_chat" else ""
    known = ", ".join(f"{name} ({family.title})" for name, family in FAMILIES.items())
    return f"model type {found!r} is not supported{hint}; supported: {known}"
