"""Shapes of models that cycles start from, so that a plan needs no download.

From the config.json files that their makers publish on the Hugging Face hub (`hf://Qwen/<name>`, revision main). The
parameters that follow are those of the published weights (`total_size` of model.safetensors.index.json, in bfloat16, is
twice as many bytes): tests/unit/api/fit/test_shapes.py.
"""

from __future__ import annotations

from typing import Any

from .shapes import ModelShape, from_config

_VISION_2_5: dict[str, Any] = {
    "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14,
    "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip
_VISION_3_SMALL: dict[str, Any] = {
    "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "patch_size": 16,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [5, 11, 17],
}  # fmt: skip
_VISION_3: dict[str, Any] = {
    **_VISION_3_SMALL, "depth": 27, "hidden_size": 1152, "intermediate_size": 4304,
    "deepstack_visual_indexes": [8, 16, 24],
}  # fmt: skip


def _qwen2_5(vision: dict[str, Any], **text: Any) -> dict[str, Any]:
    return {
        "model_type": "qwen2_5_vl",
        "max_position_embeddings": 128_000,
        "vision_config": {**_VISION_2_5, "out_hidden_size": text["hidden_size"], **vision},
        **text,
    }


def _qwen3(vision: dict[str, Any], *, tied: bool, **text: Any) -> dict[str, Any]:
    return {
        "model_type": "qwen3_vl",
        "tie_word_embeddings": tied,
        "vision_config": {**vision, "out_hidden_size": text["hidden_size"]},
        "text_config": {
            "model_type": "qwen3_vl_text",
            "vocab_size": 151_936,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 262_144,
            **text,
        },
    }


#: Name on the hub, without the owner → what counts of its config.json.
CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen2.5-VL-3B-Instruct": _qwen2_5(
        {}, hidden_size=2048, intermediate_size=11_008, num_hidden_layers=36, num_attention_heads=16,
        num_key_value_heads=2, vocab_size=151_936, tie_word_embeddings=True,
    ),
    "Qwen2.5-VL-7B-Instruct": _qwen2_5(
        {}, hidden_size=3584, intermediate_size=18_944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, vocab_size=152_064, tie_word_embeddings=False,
    ),
    "Qwen2.5-VL-32B-Instruct": _qwen2_5(
        {"intermediate_size": 3456}, hidden_size=5120, intermediate_size=27_648, num_hidden_layers=64,
        num_attention_heads=40, num_key_value_heads=8, vocab_size=152_064, tie_word_embeddings=False,
    ),
    "Qwen2.5-VL-72B-Instruct": _qwen2_5(
        {"intermediate_size": 3456}, hidden_size=8192, intermediate_size=29_568, num_hidden_layers=80,
        num_attention_heads=64, num_key_value_heads=8, vocab_size=152_064, tie_word_embeddings=False,
    ),
    "Qwen3-VL-2B-Instruct": _qwen3(
        _VISION_3_SMALL, tied=True, hidden_size=2048, intermediate_size=6144, num_hidden_layers=28,
        num_attention_heads=16,
    ),
    "Qwen3-VL-4B-Instruct": _qwen3(
        _VISION_3_SMALL, tied=True, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36,
        num_attention_heads=32,
    ),
    "Qwen3-VL-8B-Instruct": _qwen3(
        _VISION_3, tied=False, hidden_size=4096, intermediate_size=12_288, num_hidden_layers=36,
        num_attention_heads=32,
    ),
    "Qwen3-VL-32B-Instruct": _qwen3(
        _VISION_3, tied=False, hidden_size=5120, intermediate_size=25_600, num_hidden_layers=64,
        num_attention_heads=64,
    ),
}  # fmt: skip

#: What `builtin://tiny-qwen2.5-vl` builds (`medgr2_jobs.models.tiny`).
_BUILTIN, _TINY = "builtin://", {
    "model_type": "qwen2_5_vl", "tie_word_embeddings": True,
    "text_config": {
        "vocab_size": 589, "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4, "max_position_embeddings": 2048,
    },
    "vision_config": {
        "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 96,
    },
}  # fmt: skip


def known(name: str) -> ModelShape | None:
    """The shape of a model by how a cycle names it: an id of the hub, a URI, a folder with the same last part."""
    if name.startswith(_BUILTIN):
        return from_config(_TINY, "what is built in")
    last = name.partition("@")[0].rstrip("/").rpartition("/")[2].lower()
    for model, config in CONFIGS.items():
        if last in (model.lower(), model.lower().removesuffix("-instruct"), f"{model.lower()}-awq"):
            return from_config(config, f"the table of known models ({model})")
    return None
