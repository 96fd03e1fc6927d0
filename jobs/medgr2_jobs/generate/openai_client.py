"""One question to any server that speaks OpenAI's chat completions with images."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import openai
from openai.types.chat import ChatCompletion

from medgr2_api.generator import Sampling

from ..errors import ConfigError
from . import schema

#: The client's own retries of 408, 409, 429, 5xx and lost connections: backoff, or what Retry-After says.
MAX_RETRIES = 5
_TIMEOUT = openai.Timeout(300, connect=10)
_CONFIGURATION = {
    401: "the server refuses the API key",
    403: "the API key may not use this model",
    404: "the server knows no such model, or no such address (a base URL usually ends in /v1)",
}
#: Statuses that say that the server is in trouble, not that it dislikes the question.
_TROUBLE = frozenset({408, 409, 429})


@dataclass(frozen=True)
class Reply:
    """What came back for one question."""

    outcome: str
    """`ok` when there is a text to judge; otherwise refused, truncated or http_error."""
    text: str = ""
    attempts: int = 1
    input_tokens: int | None = None
    output_tokens: int | None = None
    error: str = ""
    """For http_error: what happened, without secrets."""
    trouble: bool = False
    """For http_error: the server could not be reached or could not cope, even after retries."""


class Client:
    """A model behind an address."""

    def __init__(self, base_url: str, model: str, key: str | None, sampling: Sampling) -> None:
        self.base_url = base_url
        self.model = model
        self.sampling = sampling
        self._key = key
        # Never the key in our own environment, which is not meant for this server.
        self._client = openai.AsyncOpenAI(
            base_url=base_url, api_key=key or "none", max_retries=MAX_RETRIES, timeout=_TIMEOUT
        )

    async def ask(self, prompt: str, image_png: bytes, seed: int) -> Reply:
        """Asks about one image.

        Raises:
            ConfigError: the server refuses the key, or does not know the model.
        """
        request: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": _content(prompt, image_png)}],
            "response_format": schema.response_format(),
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "max_tokens": self.sampling.max_tokens,
            "seed": seed,
        }
        try:
            raw = await self._client.chat.completions.with_raw_response.create(**request)
            return _reply(raw.parse(), raw.retries_taken + 1)
        except openai.APIStatusError as error:
            status = error.status_code
            if status in _CONFIGURATION:
                raise ConfigError(
                    f"{self.base_url}, model {self.model!r}: {status}, {_CONFIGURATION[status]}"
                ) from None
            text = f"HTTP {status}: {error.response.text or error.message}"
            return self._failed(error, text, trouble=status >= 500 or status in _TROUBLE)
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            return self._failed(error, f"{type(cause).__name__}: {cause}", trouble=True)
        except (openai.APIError, ValueError) as error:
            return Reply(schema.HTTP_ERROR, error=f"not a chat completion: {self._redact(str(error))}")

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    def _failed(self, error: openai.APIStatusError | openai.APIConnectionError, text: str, *, trouble: bool) -> Reply:
        retries = int(error.request.headers.get("x-stainless-retry-count", 0))
        return Reply(schema.HTTP_ERROR, attempts=retries + 1, error=self._redact(text), trouble=trouble)

    def _redact(self, text: str) -> str:
        return (text.replace(self._key, "***") if self._key else text)[:300]


def _content(prompt: str, image_png: bytes) -> list[Any]:
    url = "data:image/png;base64," + base64.b64encode(image_png).decode()
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]


def _reply(completion: object, attempts: int) -> Reply:
    if not isinstance(completion, ChatCompletion) or not completion.choices:  # such as a proxy's HTML page
        return Reply(schema.HTTP_ERROR, attempts=attempts, error="not a chat completion")
    choice, usage = completion.choices[0], completion.usage
    if choice.message.refusal or choice.finish_reason == "content_filter":
        outcome = schema.REFUSED
    elif choice.finish_reason == "length":
        outcome = schema.TRUNCATED
    else:
        outcome = schema.OK
    return Reply(
        outcome,
        text=choice.message.content or "",
        attempts=attempts,
        input_tokens=usage.prompt_tokens if usage else None,
        output_tokens=usage.completion_tokens if usage else None,
    )
