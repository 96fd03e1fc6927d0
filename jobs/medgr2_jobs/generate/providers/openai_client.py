"""One question to any server that speaks OpenAI's chat completions with images."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import openai
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion

from ...store.rows import CandidateOutcome
from .. import candidate_schema, provider_errors
from ..pricing import TokenUsage
from . import http
from .base import ImageQuestion, ProviderAccess, Reply, repair_text

RequestBody = dict[str, Any]


def _rename(request: RequestBody) -> RequestBody:
    return {("max_completion_tokens" if name == "max_tokens" else name): value for name, value in request.items()}


def _without(dropped: str) -> Callable[[RequestBody], RequestBody]:
    return lambda request: {name: value for name, value in request.items() if name != dropped}


#: Parameters that not every server takes → what is sent to one that named it in a 400, from then on.
_OPTIONAL: dict[str, Callable[[RequestBody], RequestBody]] = {
    "response_format": _without("response_format"),
    "seed": _without("seed"),
    "max_tokens": _rename,
}


class OpenAIClient:
    """A model behind an OpenAI-compatible address."""

    repairs = True

    def __init__(self, access: ProviderAccess) -> None:
        self.access = access
        self._unsupported: dict[str, Callable[[RequestBody], RequestBody]] = {}
        self._http = http.connections(access.provider.concurrency)
        # Never the key in our own environment, which is not meant for this server.
        self._client = openai.AsyncOpenAI(
            base_url=access.provider.base_url, api_key=access.key or "none", max_retries=0, http_client=self._http
        )

    async def ask(self, question: ImageQuestion) -> Reply:
        """Asks about one image."""
        request = self._request(question)
        try:
            # not chat.completions.create: it walks through every part of a request to translate it, and ours needs none
            return _reply(await self._client.post("/chat/completions", cast_to=ChatCompletion, body=request))
        except openai.APIStatusError as error:
            return Reply(failure=self._status(error, request))
        except (openai.APIError, ValueError) as error:
            failure = http.of_error(error)
            failure = failure or replace(provider_errors.UNREADABLE, error=f"not a chat completion: {error}")
            return Reply(failure=replace(failure, error=self.access.redact(failure.error)))

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    def image_part(self, question: ImageQuestion) -> dict[str, Any]:
        """The image as a part of the message; the same bytes for the same image."""
        url = "data:image/png;base64," + base64.b64encode(question.image_png).decode()
        return {"type": "image_url", "image_url": {"url": url}}

    def _request(self, question: ImageQuestion) -> RequestBody:
        sampling = self.access.sampling
        content = [self.image_part(question), {"type": "text", "text": question.prompt}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if question.repair is not None:
            messages.append({"role": "assistant", "content": question.repair.answer})
            messages.append({"role": "user", "content": repair_text(question.repair)})
        request: RequestBody = {
            "model": self.access.provider.model,
            "messages": messages,
            "response_format": candidate_schema.response_format(),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": question.seed,
        }
        for change in self._unsupported.values():
            request = change(request)
        return request

    def _status(self, error: openai.APIStatusError, sent: RequestBody) -> provider_errors.Failure:
        text = error.response.text or error.message
        failure = provider_errors.of_status(error.status_code, self.access.redact(text), error.response.headers)
        if error.status_code == 400:
            unsupported = [name for name in _OPTIONAL if name in sent and name in text]
            for name in unsupported:
                if name not in self._unsupported:
                    print(
                        f"{self.access.provider.base_url}: does not take {name}; it is left out from now on", flush=True
                    )
                self._unsupported[name] = _OPTIONAL[name]
            if unsupported:
                return replace(failure, action=provider_errors.FailureAction.RETRY, retry_immediately=True)
        return failure


def _reply(completion: object) -> Reply:
    if not isinstance(completion, ChatCompletion) or not completion.choices:  # such as a proxy's HTML page
        return Reply(failure=replace(provider_errors.UNREADABLE, error="not a chat completion"))
    choice, text = completion.choices[0], completion.choices[0].message.content or ""
    outcome = CandidateOutcome.OK if text.strip() else CandidateOutcome.EMPTY
    error = ""
    if choice.message.refusal or choice.finish_reason == "content_filter":
        outcome, error = CandidateOutcome.REFUSED, choice.message.refusal or "content_filter"
    elif choice.finish_reason == "length":
        outcome = CandidateOutcome.TRUNCATED
    return Reply(outcome, text=text, usage=_usage(completion.usage), error=error[:300])


def _usage(usage: CompletionUsage | None) -> TokenUsage | None:
    """Tokens; None where a server counts none, or not in numbers."""
    if usage is None:
        return None
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    if not (isinstance(prompt, int) and isinstance(completion, int) and min(prompt, completion) >= 0):
        return None
    details = usage.completion_tokens_details
    thinking = min((details.reasoning_tokens if details else None) or 0, completion)
    return TokenUsage(prompt, completion - thinking, thinking)
