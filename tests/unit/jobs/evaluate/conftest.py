"""A random Qwen2.5-VL of 0.1 M parameters with Qwen's own way of splitting text, and an image store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
    Qwen2VLVideoProcessor,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from medgr2_jobs.models import vlm
from medgr2_jobs.store.images import ImageStore

Loaded = tuple[Any, Any]

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
           "<|video_pad|>"]  # fmt: skip
TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ content['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: `>A`, `>B`, … become one token when the tags are not tokens of their own, as in Qwen's own vocabulary.
CORPUS = ["<think>it is</think><answer>A</answer> <answer>B</answer> <answer>C</answer> <answer>D</answer>",
          "Which finding ? cyst, solid mass, nodule, plaque"] * 20  # fmt: skip


def _tokenizer(*, tags: bool) -> Qwen2Tokenizer:
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, show_progress=False, initial_alphabet=alphabet))
    model = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) if not isinstance(pair, str) else tuple(pair.split(" ")) for pair in model["merges"]]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"], merges=merges, unk_token=None, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.add_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL], special_tokens=True)
    if tags:
        tokenizer.add_tokens([AddedToken(s, special=False, normalized=False) for s in TAGS])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def build_tiny(folder: Path, *, tags: bool = True, seed: int = 0) -> Path:
    """Writes model and processor; weights are wide enough that outputs differ between inputs."""
    torch.manual_seed(seed)
    tokenizer = _tokenizer(tags=tags)
    ids = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512,
            "initializer_range": 0.3, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 14,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 56, "out_hidden_size": 32,
            "fullatt_block_indexes": [0], "initializer_range": 0.3,
        },
        image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    model = Qwen2_5_VLForConditionalGeneration(config).float()
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    images = Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, min_pixels=28 * 28, max_pixels=56 * 56)
    processor = Qwen2_5_VLProcessor(images, tokenizer, Qwen2VLVideoProcessor(), chat_template=TEMPLATE)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """Model and processor whose tags are tokens of their own."""
    folder = build_tiny(tmp_path_factory.mktemp("tiny") / "model")
    return vlm.load_model(folder), vlm.load_processor(folder)


@pytest.fixture(scope="session")
def melting_model(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """Model and processor whose tokenizer melts `>` into the letter that follows."""
    folder = build_tiny(tmp_path_factory.mktemp("melting") / "model", tags=False)
    return vlm.load_model(folder), vlm.load_processor(folder)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path)


@pytest.fixture
def colours(store: ImageStore) -> dict[str, str]:
    """Name → sha256 of 56 x 56 images of one colour each, and a smaller one."""
    shades = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250), "white": (250, 250, 250)}
    shas = {name: store.add(Image.new("RGB", (56, 56), shade), 10_000).sha256 for name, shade in shades.items()}
    shas["small"] = store.add(Image.new("RGB", (28, 56), (90, 10, 60)), 10_000).sha256
    return shas
