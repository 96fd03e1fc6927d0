"""One question to the `vllm serve` beside the stage: OpenAI's protocol, and images named by their content."""

from __future__ import annotations

from typing import Any

from .base import ImageQuestion
from .openai_client import OpenAIClient


class VLLMClient(OpenAIClient):
    """vLLM takes a name with an image; equal names hit its encoder cache without hashing the pixels again."""

    def image_part(self, question: ImageQuestion) -> dict[str, Any]:
        """The image, with its sha256 as vLLM's `uuid`."""
        return {**super().image_part(question), "uuid": question.image_sha256}
