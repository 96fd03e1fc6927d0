"""Random vision-language models of a chosen shape, for benches that need a realistic cost and no quality."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from medgr2_jobs.models.patches import qwen_vl

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
            "<|video_pad|>"]  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

#: Qwen2.5-VL-3B's proportions at about 1/64 of its compute: 58 M parameters, 448 x 448 pixels = 256 image tokens.
MID = {
    "text": {"hidden_size": 512, "intermediate_size": 2752, "num_hidden_layers": 9},
    "vision": {"depth": 8, "hidden_size": 320, "intermediate_size": 855, "num_heads": 4, "fullatt_block_indexes": [7]},
    "image_tokens": 256,
}
TINY = {
    "text": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
    "vision": {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "fullatt_block_indexes": [1]},
    "image_tokens": 16,
}


def build(folder: Path, shape: dict[str, Any], *, seed: int = 0, corpus: Iterable[str] = ()) -> None:
    """Writes a random Qwen2.5-VL and its processor to `folder`; every byte is a token, and every word of `corpus`."""
    torch.manual_seed(seed)
    vocabulary, merges = _learnt(corpus)
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=4096,
    )
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS], special_tokens=True)
    tokenizer.chat_template = TEMPLATE
    ids = tokenizer.convert_tokens_to_ids
    pixels = 28 * 28
    half = shape["text"]["hidden_size"] // 4 // 2
    part = half // 3
    text = {
        "vocab_size": len(tokenizer),
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [half - 2 * part, part, part]},
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        **shape["text"],
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config={"out_hidden_size": shape["text"]["hidden_size"], **shape["vision"]},
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(
            min_pixels=pixels * shape.get("least_image_tokens", 1), max_pixels=pixels * shape["image_tokens"]
        ),
        tokenizer,
        Qwen2VLVideoProcessor(),
        chat_template=TEMPLATE,
    ).save_pretrained(folder)


def _learnt(corpus: Iterable[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a byte-level BPE that knows the words of a corpus; of an empty one: bytes alone."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(ByteLevel.alphabet())
    bpe.train_from_iterator(corpus, trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    model = json.loads(bpe.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


class Ways:
    """The two ways through a model's classes: with `medgr2_jobs.models.patches.qwen_vl`, and as transformers has it."""

    def __init__(self, model: Any) -> None:
        self._places = [(owner, name, getattr(owner, name)) for owner, name, _ in qwen_vl.places(model)]

    def take(self, *, short: bool) -> None:
        """Goes this way from now on."""
        for owner, name, shortcut in self._places:
            setattr(owner, name, shortcut if short else shortcut.medgr2_original)
