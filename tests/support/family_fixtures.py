"""Tiny random models of the families that are not built in: their real configuration, model and processor classes, with
the built-in model's vocabulary."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    GenerationConfig,
    GotOcr2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    SmolVLMImageProcessorPil,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from medgr2_jobs.models.tiny import tokenizer as tiny_tokenizer

SIDE = 56
PATCH = 14
HIDDEN = 64

#: Turns as the families' own templates write them, with their marks of turns and their place for a picture.
_TEMPLATE = """\
{%%- for message in messages -%%}
%(begin)s{{- 'model' if message['role'] == 'assistant' and %(gemma)s else message['role'] -}}{{- '\\n' -}}
{%%- if message['content'] is string -%%}{{- message['content'] -}}{%%- else -%%}
{%%- for part in message['content'] -%%}
{%%- if part['type'] == 'image' or 'image' in part -%%}{{- '%(image)s' -}}
{%%- elif 'text' in part -%%}{{- part['text'] -}}{%%- endif -%%}
{%%- endfor -%%}{%%- endif -%%}
{{- '%(end)s\\n' -}}
{%%- endfor -%%}
{%%- if add_generation_prompt -%%}%(begin)s{{- '%(assistant)s\\n' -}}{%%- endif -%%}
"""


def _template(image: str, begin: str = "<|im_start|>", end: str = "<|im_end|>", *, gemma: bool = False) -> str:
    return _TEMPLATE % {
        "image": image,
        "begin": f"{{{{- '{begin}' -}}}}",
        "end": end,
        "gemma": str(gemma).lower(),
        "assistant": "model" if gemma else "assistant",
    }


def _tokenizer(template: str, end: str = "<|im_end|>", more: tuple[str, ...] = (), **named: str) -> Any:
    """The built-in model's vocabulary, with a family's own marks."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer.tokenizer().backend_tokenizer,
        eos_token=end,
        pad_token="<|endoftext|>",
        extra_special_tokens=named,
        model_max_length=2048,
    )
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [*named.values(), *more]}, replace_extra_special_tokens=False
    )
    tokenizer.chat_template = template
    return tokenizer


def _text(tokenizer: Any, kind: str) -> dict[str, Any]:
    return {
        "model_type": kind,
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": HIDDEN // 4,
        "max_position_embeddings": 2048,
        "initializer_range": 0.08,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _vision(kind: str, **more: Any) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
        "initializer_range": 0.08,
        **more,
    }


def _gemma3() -> tuple[Any, dict[str, Any]]:
    tokenizer = _tokenizer(
        _template("<start_of_image>", "<start_of_turn>", "<end_of_turn>", gemma=True),
        end="<end_of_turn>",
        more=("<start_of_turn>", "<end_of_turn>"),
        image_token="<image_soft_token>",
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
    )
    images = Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_seq_length=4)
    processor = Gemma3Processor(images, tokenizer, chat_template=tokenizer.chat_template, image_seq_length=4)
    token = tokenizer.convert_tokens_to_ids
    config = {
        "text_config": _text(tokenizer, "gemma3_text") | {"sliding_window": 64, "query_pre_attn_scalar": 16},
        "vision_config": _vision("siglip_vision_model", vision_use_head=False),
        "mm_tokens_per_image": 4,
        "image_token_index": token("<image_soft_token>"),
        "boi_token_index": token("<start_of_image>"),
        "eoi_token_index": token("<end_of_image>"),
    }
    return processor, config


def _internvl() -> tuple[Any, dict[str, Any]]:
    tokenizer = _tokenizer(
        _template("<IMG_CONTEXT>"),
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    images = GotOcr2ImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    videos = InternVLVideoProcessor(size={"height": SIDE, "width": SIDE})
    processor = InternVLProcessor(images, tokenizer, videos, image_seq_length=4, chat_template=tokenizer.chat_template)
    config = {
        "text_config": _text(tokenizer, "qwen2"),
        "vision_config": _vision("internvl_vision") | {"image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]},
        "image_seq_length": 4,
        "image_token_id": tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
    }
    return processor, config


def _llava_onevision() -> tuple[Any, dict[str, Any]]:
    tokenizer = _tokenizer(_template("<image>"), image_token="<image>", video_token="<video>")
    grid = [[SIDE, SIDE], [SIDE, 2 * SIDE], [2 * SIDE, SIDE]]
    images = LlavaOnevisionImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=grid)
    processor = LlavaOnevisionProcessor(
        images,
        tokenizer,
        LlavaOnevisionVideoProcessor(size={"height": SIDE, "width": SIDE}),
        num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
    )
    token = tokenizer.convert_tokens_to_ids
    config = {
        "text_config": _text(tokenizer, "qwen2"),
        "vision_config": _vision("siglip_vision_model", vision_use_head=False),
        "image_token_id": token("<image>"),
        "video_token_id": token("<video>"),
        "image_grid_pinpoints": grid,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }
    return processor, config


def _idefics3() -> tuple[Any, dict[str, Any]]:
    tokenizer = _split_image_tokenizer()
    images = Idefics3ImageProcessorPil(size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE})
    processor = Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=tokenizer.chat_template)
    return processor, _split_image_config(tokenizer, "idefics3_vision")


def _smolvlm() -> tuple[Any, dict[str, Any]]:
    tokenizer = _split_image_tokenizer()
    images = SmolVLMImageProcessorPil(size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE})
    videos = SmolVLMVideoProcessor(size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE})
    processor = SmolVLMProcessor(images, tokenizer, videos, image_seq_len=4, chat_template=tokenizer.chat_template)
    return processor, _split_image_config(tokenizer, "smolvlm_vision")


def _split_image_tokenizer() -> Any:
    """Idefics3's and SmolVLM's: a picture is shown whole and in parts, each with a mark of its place."""
    return _tokenizer(
        _template("<image>", end="<end_of_utterance>"),
        end="<end_of_utterance>",
        more=(
            "<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>",
            *(f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3)),
        ),
    )  # fmt: skip


def _split_image_config(tokenizer: Any, vision: str) -> dict[str, Any]:
    return {
        "text_config": _text(tokenizer, "llama"),
        "vision_config": _vision(vision),
        "scale_factor": 2,
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "pad_token_id": tokenizer.pad_token_id,
    }


BUILDERS: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "gemma3": _gemma3,
    "internvl": _internvl,
    "llava_onevision": _llava_onevision,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
}


def write(family: str, folder: Path, seed: int = 1) -> None:
    """A random model of a family, with its processor, in Hugging Face format."""
    processor, config = BUILDERS[family]()
    torch.manual_seed(seed)
    model: Any = AutoModelForImageTextToText.from_config(AutoConfig.for_model(family, **config))
    model = model.float()
    for name, value in model.named_parameters():
        if name.endswith("mm_input_projection_weight"):  # Gemma's starts at zero: it would be blind
            torch.nn.init.normal_(value, std=0.2)
    tokenizer = processor.tokenizer
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == family
