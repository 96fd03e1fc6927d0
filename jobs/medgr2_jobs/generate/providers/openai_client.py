"""One question to any server that speaks OpenAI's chat completions with images."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import httpx2
from pydantic import Field

from medgr2_api.stages.generate import Provider

from ...store.rows.candidates import CandidateOutcome
from .. import candidate_schema, provider_errors
from ..pricing import TokenUsage
from . import http
from .base import ImageQuestion, ProviderAccess, Reply, repair_text
from .http import AnswerModel, Text, TokenCount

_log = logging.getLogger(__name__)
RequestBody = dict[str, Any]

#: Parts of a message that are its text; others are thinking, citations, sound.
_TEXT_PARTS = ("text", "output_text")
#: Why an answer ended, in the words of those that gateways pass on.
_TRUNCATED = frozenset({"length", "max_tokens", "max_output_tokens", "model_length"})
_REFUSED = frozenset({"content_filter", "safety", "recitation", "blocklist", "prohibited_content", "spii", "refusal"})


class _Part(AnswerModel):
    type: Text = "text"
    text: Text = None


class _Message(AnswerModel):
    content: str | list[_Part | str] | None = None
    refusal: Text = None

    @property
    def text(self) -> str:
        """All that is said. Many gateways send a list of parts instead of one text."""
        if isinstance(self.content, str):
            return self.content
        parts = [_Part(text=part) if isinstance(part, str) else part for part in self.content or ()]
        return "".join(part.text or "" for part in parts if part.type in _TEXT_PARTS)


class _Choice(AnswerModel):
    message: _Message
    finish_reason: Text = None


class _ThinkingCount(AnswerModel):
    reasoning_tokens: TokenCount = None


class _Usage(AnswerModel):
    prompt_tokens: TokenCount = None
    completion_tokens: TokenCount = None
    total_tokens: TokenCount = None
    completion_tokens_details: Annotated[_ThinkingCount | None, http.OPTIONAL] = None

    def of(self, text: str) -> TokenUsage | None:
        """What is charged. Some count thinking in the total only."""
        if self.prompt_tokens is None or self.completion_tokens is None:
            return None
        output = max(self.completion_tokens, (self.total_tokens or 0) - self.prompt_tokens)
        counted = self.completion_tokens_details and self.completion_tokens_details.reasoning_tokens
        thinking = min(max(counted or 0, output - self.completion_tokens), output)
        return http.usage(text, self.prompt_tokens, output - thinking, thinking)


class _Completion(AnswerModel):
    choices: Annotated[list[_Choice], Field(min_length=1)]
    usage: Annotated[_Usage | None, http.OPTIONAL] = None


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


def _thinking(provider: Provider) -> RequestBody:
    """What the user says about thinking. Unlike the parameters above it is never left out."""
    fields = {"reasoning_effort": provider.reasoning_effort, "chat_template_kwargs": provider.chat_template_kwargs}
    return {name: value for name, value in fields.items() if value}


class OpenAIClient:
    """A model behind an OpenAI-compatible address."""

    repairs = True

    def __init__(self, access: ProviderAccess) -> None:
        self.access = access
        self._unsupported: dict[str, Callable[[RequestBody], RequestBody]] = {}
        self._http = http.connections(access.provider)
        self._url = f"{access.provider.base_url.rstrip('/')}/chat/completions"
        self._thinking = _thinking(access.provider)
        self._headers = {"authorization": f"Bearer {access.key}"} if access.key else {}

    async def ask(self, question: ImageQuestion) -> Reply:
        """Asks about one image."""
        request = self._request(question)
        try:
            response = await self._http.post(self._url, json=request, headers=self._headers)
            if not response.is_success:
                return Reply(failure=self._status(response, request))
            return _reply(http.read(_Completion, response))
        except (httpx2.HTTPError, ValueError) as error:
            failure = http.of_error(error) or replace(
                provider_errors.UNREADABLE, error=f"not a chat completion: {error}"
            )
            return Reply(failure=replace(failure, error=self.access.redact(failure.error)))

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

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
            "max_tokens": sampling.max_output_tokens,
            "seed": question.seed,
            **self._thinking,
        }
        for change in self._unsupported.values():
            request = change(request)
        return request

    def _status(self, response: httpx2.Response, sent: RequestBody) -> provider_errors.Failure:
        text = http.text_of(response)
        failure = provider_errors.of_status(response.status_code, self.access.redact(text), response.headers)
        refused = [name for name in self._thinking if name in text]
        if failure.action is provider_errors.FailureAction.SKIP and refused:  # what the user asked for is not left out
            stop = provider_errors.FailureAction.STOP
            return replace(failure, action=stop, error=f"it does not take {', '.join(refused)}: {failure.error}")
        if response.status_code == 400:
            unsupported = [name for name in _OPTIONAL if name in sent and name in text]
            for name in unsupported:
                if name not in self._unsupported:
                    _log.info("%s: does not take %s; it is left out from now on", self.access.provider.base_url, name)
                self._unsupported[name] = _OPTIONAL[name]
            if unsupported:
                return replace(failure, action=provider_errors.FailureAction.RETRY, retry_immediately=True)
        return failure


def _reply(completion: _Completion) -> Reply:
    choice = completion.choices[0]
    text, reason, refusal = choice.message.text, choice.finish_reason or "", choice.message.refusal
    outcome = CandidateOutcome.OK if text.strip() else CandidateOutcome.EMPTY
    error = ""
    if refusal or reason.lower() in _REFUSED:
        outcome, error = CandidateOutcome.REFUSED, refusal or reason
    elif reason.lower() in _TRUNCATED:
        outcome = CandidateOutcome.TRUNCATED
    counted = completion.usage.of(text) if completion.usage else None
    return Reply(outcome, text=text, usage=counted, error=error[:300])
