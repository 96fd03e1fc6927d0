"""The tiny model's tokenizer and processor, trained in code: Qwen's own kind, with our few words as whole tokens."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2_5_VLProcessor, Qwen2Tokenizer, Qwen2VLImageProcessorPil, Qwen2VLVideoProcessor
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from medgr2_api.training_spec import AnswerFormat

from ...data import synthetic_images
from ...prompts import answers

PATCH = 14
MERGE = 2

_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
#: Whole tokens, but not special: decoding must keep them.
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_MOST_TOKENS = 1200  # of the BPE; training ends earlier, when every word of the corpus is one token

#: Qwen2.5-VL's turns, without its default system prompt.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif 'text' in part -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\n' -}}
{%- endif -%}
"""

#: What a caption calls the looks of each value: words that no question, option or rationale uses. A base model that
#: was captioned in these sees, but does not know what the things are called: zero-shot it stays at chance.
LOOKS: dict[str, tuple[str, ...]] = {
    "modality": ("ring", "wave", "stripe", "fan", "tan", "orange", "band", "purple"),
    "finding": ("ball", "hoop", "bar", "pole", "cross", "dots"),
    "location": ("red corner", "green corner", "blue corner", "yellow corner"),
    "count": ("single", "pair", "triple", "quad"),
}


@cache
def tokenizer() -> Any:
    """A `Qwen2Tokenizer` whose vocabulary was trained on all that phantoms can say (and any bytes beside)."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        _corpus(),
        trainers.BpeTrainer(
            vocab_size=_MOST_TOKENS,
            min_frequency=2,
            show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        ),
    )
    trained = json.loads(bpe.to_str())["model"]
    qwen_tokenizer = Qwen2Tokenizer(
        vocab=trained["vocab"],
        # the backend takes pairs, and no unknown token where every byte is one, whatever these two are annotated with
        merges=[tuple(merge) for merge in trained["merges"]],  # type: ignore[misc]
        unk_token=None,  # type: ignore[arg-type]
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=2048,
    )
    qwen_tokenizer.add_tokens(
        [AddedToken(text, special=True, normalized=False) for text in _SPECIAL], special_tokens=True
    )
    qwen_tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in _TAGS])
    qwen_tokenizer.chat_template = CHAT_TEMPLATE
    return qwen_tokenizer


def processor() -> Any:
    """The stock Qwen2.5-VL processor; every image becomes 56 x 56 pixels, 16 patches, 4 tokens."""
    images = Qwen2VLImageProcessorPil(
        patch_size=PATCH, merge_size=MERGE, min_pixels=synthetic_images.SIZE**2, max_pixels=synthetic_images.SIZE**2
    )
    return Qwen2_5_VLProcessor(
        image_processor=images,
        tokenizer=tokenizer(),
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )


def _corpus() -> list[str]:
    """Every word in every place it can stand (with and without a space before it), often enough to be merged."""
    texts = ["user\n", "assistant\n", "Describe.", "Note:"]
    for kind, values in synthetic_images.VALUES.items():
        for value, looks in zip(values, LOOKS[kind], strict=True):
            texts += [value, f" {value}, {value}", looks, f" {looks}"]
            texts += [template.format(value) for template in synthetic_images.RATIONALES[kind]]
        for question in synthetic_images.QUESTIONS[kind]:
            texts += [answers.prompt_text(question, values, answer_format) for answer_format in AnswerFormat]
    return [text for text in texts for _ in range(4)]
