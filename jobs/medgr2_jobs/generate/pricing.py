"""What a request costs: afterwards, by the tokens counted, and at most, before it is sent."""

from __future__ import annotations

import math
from dataclasses import dataclass

from medgr2_api.generator import Prices

#: Tokens that a chat template adds around a prompt, generously.
_TEMPLATE_TOKENS = 256
_MILLION = 1e6


@dataclass(frozen=True)
class TokenUsage:
    """Tokens of one request, as the provider counted them."""

    input_tokens: int
    """Prompt and image; what came from the provider's cache included."""
    output_tokens: int
    """The answer."""
    thinking_tokens: int = 0
    """Thinking; it is charged as output."""


def max_input_tokens(text_bytes: int, prices: Prices | None) -> int:
    """Input tokens of a request at most: a token has at least one byte of text.

    Args:
        text_bytes: of all that is sent beside the image, the schema included.
        prices: knows how many tokens an image can be.
    """
    return text_bytes + _TEMPLATE_TOKENS + (prices or _NO_PRICES).max_image_tokens


def cost(prices: Prices, usage: TokenUsage) -> float:
    """US dollars for these tokens, rounded up to a billionth."""
    output = usage.output_tokens + usage.thinking_tokens
    dollars = (usage.input_tokens * prices.input_usd + output * prices.output_usd) / _MILLION
    return math.ceil(round(dollars * 1e9, 3)) / 1e9


_NO_PRICES = Prices(input_usd=0, output_usd=0)
