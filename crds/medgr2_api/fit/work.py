"""Floating-point operations of a model, and seconds of a GPU, from its shape."""

from __future__ import annotations

from .assumptions import Assumptions
from .gpus import GPU
from .shapes import ModelShape

#: What `Assumptions.server_tokens` was measured on: Qwen2.5-7B's parameters, an H100's bandwidth.
_SERVER_PARAMETERS, _SERVER_BANDWIDTH = 7.6e9, 3.35e12


def text_flops(model: ModelShape, tokens: float, *, after: float = 0.0, logits: float = 0.0) -> float:
    """Forward pass of the language model over one row.

    Two operations a weight and token, and attention: 4 · queries a pair of positions and layer, half of the pairs
    because it looks back only.

    Args:
        model: its shape.
        tokens: of the row that are run.
        after: tokens before them whose keys and values are kept.
        logits: positions that go through the LM head.
    """
    text = model.text
    pairs = tokens * (after + tokens / 2)
    return 2 * tokens * text.layers * text.linear + 4 * text.queries * text.layers * pairs + 2 * logits * text.head


def vision_flops(model: ModelShape, image_tokens: float) -> float:
    """Forward pass of the tower over one picture: two operations a weight and patch (attention in windows is a few
    percent of it), and the merger's a token."""
    vision = model.vision
    patches = image_tokens * vision.merge**2
    block = 4 * vision.hidden**2 + (3 if vision.gated else 2) * vision.hidden * vision.intermediate
    merged = vision.hidden * vision.merge**2
    return 2 * patches * vision.depth * block + 2 * image_tokens * merged * (merged + model.text.hidden)


def training_factor(rank: int, *, checkpointing: bool, tower_frozen: bool = False) -> tuple[float, float]:
    """Forward passes that training one row costs, of the language model and of the tower.

    Forward 1; backward 1 for what passes through and 1 for the weights that are trained, which adapters save; 1 more
    where layers are run again. A frozen tower runs forward only.
    """
    again = 1.0 if checkpointing else 0.0
    return (2.0 if rank else 3.0) + again, 1.0 if rank or tower_frozen else 3.0 + again


def reading_seconds(flops: float, gpu: GPU, known: Assumptions) -> float:
    """Of one GPU, for forward passes over whole prompts."""
    return flops / (gpu.flops * known.reading_use.value)


def training_seconds(flops: float, gpu: GPU, known: Assumptions) -> float:
    """Of one GPU, for training."""
    return flops / (gpu.flops * known.training_use.value)


def generate_seconds(model: ModelShape, tokens: float, gpu: GPU, known: Assumptions, *, moved: float = 2.0) -> float:
    """Of one GPU, for one batch through transformers' `generate`, however many rows it has (up to memory).

    Every token moves all weights: 2 bytes each in bfloat16; 8 where they are float32 and cast anew for each token
    (read 4, write 2, read 2); 4.5 where they have 4 bits and are unpacked for each (read .5, write 2, read 2). Beside
    it each layer costs a fixed time: a dozen small kernels, started one by one.

    Args:
        model: that writes.
        tokens: of the batch's longest answer.
        gpu: where.
        known: what is assumed.
        moved: bytes a weight and token.
    """
    read = model.parameters * moved / (gpu.bandwidth * known.memory_use.value)
    return tokens * (read + model.text.layers * known.layer_seconds.value)


def server_seconds(model: ModelShape, tokens: float, gpu: GPU, known: Assumptions) -> float:
    """Of one GPU, for so many sampled tokens by vLLM with many requests in flight; prompts come on top."""
    rate = known.server_tokens.value * (gpu.bandwidth / _SERVER_BANDWIDTH) * (_SERVER_PARAMETERS / model.parameters)
    return tokens / rate
