"""Whom to ask: kind of provider → its client. A client's library is imported when it is needed, and not before."""

from __future__ import annotations

import importlib

from ...errors import ConfigError
from .base import Access, Client

#: Kind, as the spec names it → module and class.
CLIENTS = {
    "gemini": ("gemini_client", "GeminiClient"),
    "openAI": ("openai_client", "OpenAIClient"),
    "vllm": ("vllm_client", "VLLMClient"),
}


def connect(access: Access) -> Client:
    """The client of a provider.

    Raises:
        ConfigError: there is no such kind.
    """
    kind = access.provider.kind
    if kind not in CLIENTS:
        raise ConfigError(f"generator {kind!r}: this version has scripted, {', '.join(sorted(CLIENTS))}")
    module, name = CLIENTS[kind]
    made: Client = getattr(importlib.import_module(f".{module}", __package__), name)(access)
    return made
