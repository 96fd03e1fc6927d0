"""How the built-in model is pre-trained, as its name says: `builtin://tiny-qwen2.5-vl?steps=20&images=64`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl

from ...errors import ConfigError

TINY = "builtin://tiny-qwen2.5-vl"


@dataclass(frozen=True)
class PretrainSettings:
    """How long, and on what. The query of the model's name may change each of them."""

    steps: int = 380
    images: int = 2000
    batch: int = 32
    learning_rate: float = 2e-3
    caption_share: float = 0.75
    """Rest: questions about a note."""
    captions: str = "looks"
    """looks: in words of their own; answers: in the words of the answers (the base then answers above chance)."""

    @classmethod
    def named(cls, name: str, field: str) -> PretrainSettings:
        """The settings in a built-in model's name.

        Args:
            name: of the model.
            field: where it stands in the spec, for the message.

        Raises:
            ConfigError: no such built-in model, or a setting it does not have.
        """
        base, _, query = name.partition("?")
        if base != TINY:
            raise ConfigError(f"{field}: there is no built-in model {base!r}; there is {TINY}")
        settings = cls()
        for key, text in parse_qsl(query, keep_blank_values=True):
            if key not in _READ:
                raise ConfigError(f"{field}: {TINY} has no setting {key!r}; it has {', '.join(_READ)}")
            try:
                settings = _READ[key](settings, text)
            except ValueError:
                raise ConfigError(f"{field}: {key}={text!r} is not a number") from None
        if settings.captions not in ("looks", "answers"):
            raise ConfigError(f"{field}: captions={settings.captions!r}; it is looks or answers")
        for key, minimum in _LEAST.items():
            value: float = getattr(settings, key)
            if value < minimum:
                raise ConfigError(f"{field}: {key}={value} is below {minimum}")
        return settings


_READ: dict[str, Callable[[PretrainSettings, str], PretrainSettings]] = {
    "steps": lambda settings, text: replace(settings, steps=int(text)),
    "images": lambda settings, text: replace(settings, images=int(text)),
    "batch": lambda settings, text: replace(settings, batch=int(text)),
    "learning_rate": lambda settings, text: replace(settings, learning_rate=float(text)),
    "caption_share": lambda settings, text: replace(settings, caption_share=float(text)),
    "captions": lambda settings, text: replace(settings, captions=text),
}
_LEAST = {"steps": 0, "images": 1, "batch": 1, "learning_rate": 0, "caption_share": 0}
