"""Whether a model sees: a look at a few rows before a training, for a blind one learns, too, and nobody notices.

Found in other people's runs: image tokens that no feature belongs to, pictures that a wrapper dropped on the way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from peft import PeftModel
from PIL import Image
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from ..errors import ImageIgnored, ImageTokensMismatch
from .vlm import Encoder, PromptResponse, response_logprobs

_ROWS = 4  # with different pictures
_LEAST_CHANGE = 1e-6  # of a token's log-probability; two ways through a model differ by about as much
_GREY = (128, 128, 128)


class BlankEncoder(Encoder):
    """Shows mid grey of the same size in place of every image."""

    def image(self, sha256: str) -> Image.Image:
        return Image.new("RGB", super().image(sha256).size, _GREY)


@torch.no_grad()
def check(model: Any, encoder: Encoder, rows: Iterable[PromptResponse]) -> None:
    """Runs a model over the first rows with different pictures, and over the same rows without them.

    Nothing is checked where processes share out the weights (Zero3): no forward pass works before the training begins.

    Args:
        model: about to be trained, with or without adapters; its mode is restored.
        encoder: of its processor.
        rows: with their answers.

    Raises:
        ImageTokensMismatch: the model has more or fewer features for a picture than there are tokens for it.
        ImageIgnored: a blank picture changes no log-probability of any answer.
    """
    some = _some(rows)
    if not some or is_deepspeed_zero3_enabled():
        return
    core: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    blank = BlankEncoder(encoder.processor, encoder.images)
    training = model.training
    model.eval()
    try:
        _count(core, encoder, some)
        right, without = (response_logprobs(core, one.batch(some).to(core.device))[0] for one in (encoder, blank))
    finally:
        model.train(training)
    if float((right - without).abs().max()) <= _LEAST_CHANGE:
        raise ImageIgnored(
            f"a blank picture in the place of the right one changes nothing of what {core.config.model_type} says to "
            f"{len(some)} questions: the model does not see its pictures. Its weights or its processor are not those "
            "that belong together; fetch the model again, or take another one"
        )


def _some(rows: Iterable[PromptResponse]) -> list[PromptResponse]:
    """The first rows with different pictures."""
    some: dict[str, PromptResponse] = {}
    for row in rows:
        if row.image_sha256 is not None and row.response:
            some.setdefault(row.image_sha256, row)
        if len(some) == _ROWS:
            break
    return list(some.values())


def _count(core: Any, encoder: Encoder, rows: list[PromptResponse]) -> None:
    """transformers compares the two in some families only; in others wrong features would be taken without a word."""
    for row in rows:
        assert row.image_sha256 is not None
        inputs = {name: value.to(core.device) for name, value in encoder.pictures.inputs([row.image_sha256]).items()}
        found = core.model.get_image_features(**inputs, return_dict=True).pooler_output
        parts = [found] if isinstance(found, torch.Tensor) else found
        features = sum(part.numel() // part.shape[-1] for part in parts)
        tokens = encoder.prompt_ids(row).count(encoder.image_token_id)
        if features != tokens:
            raise ImageTokensMismatch(
                f"{core.config.model_type} makes {features} features of picture {row.image_sha256[:12]}, and its "
                f"processor leaves {tokens} tokens for them: model and processor are not those that belong together "
                "(their image size, patch size or tokens per image differ); fetch the model again"
            )
