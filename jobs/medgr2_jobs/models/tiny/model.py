"""The tiny model: Qwen2.5-VL's real architecture with about half a million parameters, random."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from ..patches import qwen_vl
from .tokenizer import MERGE, PATCH

HIDDEN = 96
LAYERS = 2
HEADS = 4
VISION_HIDDEN = 64
VISION_DEPTH = 2
#: At the library's 0.02 a model of this size learns several times slower.
INITIALIZER_RANGE = 0.08


def build(tokenizer: Any, seed: int) -> Any:
    """A freshly initialised model in float32 on the CPU; the same weights for the same seed."""
    torch.manual_seed(seed)
    token = tokenizer.convert_tokens_to_ids
    half = HIDDEN // HEADS // 2
    height = width = (half - half // 4) // 2
    shape: dict[str, Any] = {
        "text_config": {
            "vocab_size": len(tokenizer),
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
            "max_position_embeddings": 2048,
            "use_sliding_window": False,
            "initializer_range": INITIALIZER_RANGE,
            # the three axes of a token's position share half of a head's dimensions
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [half - height - width, height, width],
            },
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        "vision_config": {
            "depth": VISION_DEPTH,
            "hidden_size": VISION_HIDDEN,
            "intermediate_size": 2 * VISION_HIDDEN,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": 8 * PATCH * MERGE,
            "out_hidden_size": HIDDEN,
            "fullatt_block_indexes": list(range(VISION_DEPTH)),
            "initializer_range": INITIALIZER_RANGE,
        },
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
        "tie_word_embeddings": True,
        "initializer_range": INITIALIZER_RANGE,
    }
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**shape)).float()
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return qwen_vl.apply(model)
