"""The shape of a vision-language model, from its config.json, and what follows from it: parameters, work, activations.

Of the Qwen2-VL, Qwen2.5-VL and Qwen3-VL families every weight is counted (tests/unit/jobs/models/test_fit_formulas.py
builds the same configurations with transformers and counts). Of another family the language model is counted so, too,
and its vision tower as a plain ViT: within a few percent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Families whose vision tower has a MLP with a gate (three matrices), and RMSNorm.
_GATED = ("qwen2_5_vl",)
#: Families whose attention has biases at query, key and value where the configuration does not say.
_QKV_BIAS = ("qwen2", "qwen2_vl", "qwen2_5_vl")
#: Families that normalise queries and keys.
_QK_NORM = ("qwen3", "qwen3_vl", "gemma3", "gemma3_text")


@dataclass(frozen=True)
class TextShape:
    """The language model."""

    vocabulary: int
    hidden: int
    intermediate: int
    """Width of the MLP, which has three matrices (gate, up, down)."""
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    """The LM head is the embedding."""
    qkv_bias: bool = False
    qk_norm: bool = False

    @property
    def queries(self) -> int:
        """Width of all queries."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all keys; the values' is the same."""
        return self.kv_heads * self.head_dim

    @property
    def linear(self) -> int:
        """Weights of the linear layers of one layer: what LoRA's adapters sit on (q, k, v, o, gate, up, down)."""
        attention = self.hidden * (2 * self.queries + 2 * self.keys)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def layer(self) -> int:
        """Parameters of one layer: linear layers, biases, two norms, and norms of queries and keys."""
        biases = self.queries + 2 * self.keys if self.qkv_bias else 0
        return self.linear + biases + 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)

    @property
    def head(self) -> int:
        """Weights of the LM head."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """Embedding, LM head where it is not the same, layers, the last norm."""
        return self.head * (1 if self.tied else 2) + self.layers * self.layer + self.hidden

    def adapters(self, rank: int) -> int:
        """Parameters of LoRA's adapters of this rank: r · (in + out) for each linear layer of each layer.

        q: h → q, k and v: h → kv, o: q → h, gate and up: h → i, down: i → h.
        """
        sizes = (self.hidden + self.queries, *[self.hidden + self.keys] * 2, self.queries + self.hidden)
        return rank * self.layers * (sum(sizes) + 3 * (self.hidden + self.intermediate))


@dataclass(frozen=True)
class VisionShape:
    """The vision tower, and the projector that brings its patches into the language model."""

    depth: int
    hidden: int
    intermediate: int
    heads: int
    patch: int
    """Pixels of a patch's side."""
    merge: int
    """Patches of the side of the square that becomes one token."""
    gated: bool
    """Its MLP has a gate: three matrices."""
    parameters: int
    joins: int = 0
    """Of them those that join it to the language model: they learn where the tower is frozen."""

    @property
    def pixels_per_token(self) -> int:
        """Pixels of the picture that become one token of the language model."""
        return (self.patch * self.merge) ** 2


@dataclass(frozen=True)
class ModelShape:
    """A vision-language model."""

    family: str
    """`model_type` of its config.json."""
    text: TextShape
    vision: VisionShape
    source: str
    """Where the shape is from, for people."""
    counted: int | None = None
    """Parameters as its weights' files have them, where these were read."""
    context: int = 0
    """Tokens that it can read; 0: not told."""
    least_pixels: int = 0
    """Smaller pictures its processor enlarges."""

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.counted or self.text.parameters + self.vision.parameters

    def image_tokens(self, pixels: int) -> int:
        """Tokens of a picture of so many pixels, rounded up."""
        return -(-max(pixels, self.least_pixels) // self.vision.pixels_per_token)


class ShapeError(ValueError):
    """A config.json that does not say what is needed; the message names the field."""


def from_config(
    config: Mapping[str, Any],
    source: str,
    counted: int | None = None,
    processor: Mapping[str, Any] | None = None,
) -> ModelShape:
    """The shape that a config.json describes.

    Args:
        config: its content. The language model's fields stand in `text_config`, or, in older files, at the top.
        source: where it is from, for people.
        counted: parameters, if the weights' files have told them.
        processor: content of preprocessor_config.json or processor_config.json, if it is there.

    Raises:
        ShapeError: a field is missing or is no number.
    """
    family = str(config.get("model_type") or "")
    language = {**config, **(config.get("text_config") or {})}
    kind = str((config.get("text_config") or {}).get("model_type") or family).removesuffix("_text")
    hidden, heads = _number(language, "hidden_size", source), _number(language, "num_attention_heads", source)
    text = TextShape(
        vocabulary=_number(language, "vocab_size", source),
        hidden=hidden,
        intermediate=_number(language, "intermediate_size", source),
        layers=_number(language, "num_hidden_layers", source),
        heads=heads,
        kv_heads=_number(language, "num_key_value_heads", source, heads),
        head_dim=_number(language, "head_dim", source, hidden // heads),
        tied=bool(config.get("tie_word_embeddings", language.get("tie_word_embeddings", False))),
        qkv_bias=bool(language.get("attention_bias", False)) or kind in _QKV_BIAS,
        qk_norm=kind in _QK_NORM,
    )
    context = language.get("max_position_embeddings")
    return ModelShape(
        family,
        text,
        _vision(config.get("vision_config") or {}, family, hidden, source),
        source,
        counted,
        context if isinstance(context, int) else 0,
        _least_pixels(processor or {}),
    )


def _least_pixels(processor: Mapping[str, Any]) -> int:
    pictures = processor.get("image_processor") or processor
    least = pictures.get("min_pixels") or (pictures.get("size") or {}).get("shortest_edge")  # pixels, whatever its name
    return least if isinstance(least, int) else 0


def _vision(config: Mapping[str, Any], family: str, text_hidden: int, source: str) -> VisionShape:
    """The tower, its parameters counted as its family builds it.

    Qwen2-VL: patches by a convolution over two frames without bias; blocks of LayerNorm, attention and a MLP of two
    matrices, all with biases; a merger of LayerNorm and two matrices. Qwen2.5-VL: RMSNorm, and a MLP with a gate.
    Qwen3-VL: as the first, with a bias and learnt positions, and a further merger for each layer of DeepStack.
    """
    depth = _number(config, "depth", source, config.get("num_hidden_layers"))
    width = _number(config, "embed_dim" if family == "qwen2_vl" else "hidden_size", source)
    ratio = config.get("mlp_ratio") if family == "qwen2_vl" else None
    inner = int(width * ratio) if ratio else _number(config, "intermediate_size", source, 4 * width)
    heads = _number(config, "num_heads", source, config.get("num_attention_heads"))
    patch, merge = (
        _number(config, "patch_size", source, 14),
        _number(config, "spatial_merge_size", source, 2 if "qwen" in family else 1),
    )
    gated, merged = family in _GATED, width * merge**2
    out = text_hidden if family == "qwen2_vl" else _number(config, "out_hidden_size", source, text_hidden)
    frames = _number(config, "temporal_patch_size", source, 2 if "qwen" in family else 1)
    norm = width if gated else 2 * width
    mlp = (3 if gated else 2) * width * inner + (2 if gated else 1) * inner + width
    block = 2 * norm + (3 * width * width + 3 * width) + (width * width + width) + mlp
    merger = merged * merged + merged + merged * out + out
    count = 3 * frames * patch**2 * width + depth * block + norm + merger
    if family not in ("qwen2_vl", "qwen2_5_vl"):  # a bias, and learnt positions
        positions = config.get("num_position_embeddings") or (int(config.get("image_size") or 0) // patch) ** 2
        count += width + int(positions) * width
    # DeepStack's mergers normalise after merging, the last one before
    stacked = len(config.get("deepstack_visual_indexes") or ()) * (2 * merged + merger)
    return VisionShape(depth, width, inner, heads, patch, merge, gated, count + stacked, norm + merger + stacked)


def _number(config: Mapping[str, Any], field: str, source: str, default: Any = None) -> int:
    value = config.get(field, default)
    if value is None and default is not None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ShapeError(f"{source}: {field} is {value!r}: a config.json of a vision-language model has a number there")
    return value
