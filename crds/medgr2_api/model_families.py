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
    "smolvlm": Family("SmolVLM2"),
}


#: The linear layers of the language model (which Idefics3 calls text_model), by their full names: what adapters sit on,
#: and what is quantized under them. Not the vision tower's: vLLM serves no adapters there, and 4 bits break it
#: (unsloth.ai/blog/dynamic-4bit: of a train it then sees a coast).
ADAPTED = r".*(language_model|text_model)\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
#: Parameters of the vision tower, without those that join it to the language model.
VISION_TOWER = r"(.*\.)?(visual|vision_tower|vision_model)\.(?!merger\.|deepstack_merger_list\.).*"


def refusal(config: Mapping[str, Any]) -> str | None:
    """Why a model with this `config.json` cannot be used; None: its family is supported."""
    found = config.get("model_type")
    if found in FAMILIES:
        return None
    hint = "; take the repository that ends in -hf" if found == "internvl_chat" else ""
    known = ", ".join(f"{name} ({family.title})" for name, family in FAMILIES.items())
    return f"model type {found!r} is not supported{hint}; supported: {known}"
