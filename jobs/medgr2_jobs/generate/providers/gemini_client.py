"""One question to Google's Gemini API, method generateContent."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Annotated, Any
from urllib.parse import quote

import httpx2
from pydantic import Field

from ...store.rows.candidates import CandidateOutcome
from .. import candidate_schema, provider_errors
from ..pricing import TokenUsage
from . import http
from .base import ImageQuestion, ProviderAccess, Reply
from .http import AnswerModel, Text, TokenCount

GOOGLE = "https://generativelanguage.googleapis.com"
_MAX_TOKENS = "MAX_TOKENS"
_STOP = "STOP"
#: Finish reasons that are a refusal: safety, or a text that may not be repeated.
_REFUSALS = frozenset(
    {"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT",
     "IMAGE_RECITATION", "LANGUAGE", "ESCALATION", "MODEL_ARMOR"}
)  # fmt: skip
#: What a 400 says when it is about the account, not about the question.
_ACCOUNT_ERRORS = ("API_KEY_INVALID", "FAILED_PRECONDITION", "API key not valid")


class _Part(AnswerModel):
    text: str | None = None
    thought: object = None


class _Content(AnswerModel):
    parts: list[_Part] | None = None


class _Candidate(AnswerModel):
    content: _Content | None = None
    finish_reason: Annotated[Text, Field(alias="finishReason")] = None


class _Feedback(AnswerModel):
    block_reason: Annotated[Text, Field(alias="blockReason")] = None


class _Usage(AnswerModel):
    prompt: Annotated[TokenCount, Field(alias="promptTokenCount")] = None
    tools: Annotated[TokenCount, Field(alias="toolUsePromptTokenCount")] = None
    answer: Annotated[TokenCount, Field(alias="candidatesTokenCount")] = None
    thoughts: Annotated[TokenCount, Field(alias="thoughtsTokenCount")] = None

    def of(self, text: str) -> TokenUsage | None:
        """What is charged. The prompt includes what came from the cache; a block before the model ran has nothing
        else."""
        prompt = None if self.prompt is None else self.prompt + (self.tools or 0)
        return http.usage(text, prompt, self.answer or 0, self.thoughts or 0)


class _Response(AnswerModel):
    candidates: list[_Candidate] | None = None
    feedback: Annotated[_Feedback | None, Field(alias="promptFeedback")] = None
    usage: Annotated[_Usage | None, Field(alias="usageMetadata"), http.OPTIONAL] = None


class _RetryInfo(AnswerModel):
    type: Annotated[Text, Field(alias="@type")] = None
    delay: Annotated[Text, Field(alias="retryDelay")] = None


class _Error(AnswerModel):
    message: Text = None
    status: Text = None
    details: Annotated[list[Annotated[_RetryInfo | None, http.OPTIONAL]] | None, http.OPTIONAL] = None


class _ErrorBody(AnswerModel):
    error: _Error


class GeminiClient:
    """A Gemini model. Its answers keep to the schema, so none is sent back."""

    repairs = False

    def __init__(self, access: ProviderAccess) -> None:
        self.access = access
        self._http = http.connections(access.provider)
        model = access.provider.model
        name = model if model.startswith(("models/", "tunedModels/")) else f"models/{model}"
        base = (access.provider.base_url or GOOGLE).rstrip("/")
        self._url = f"{base}/v1/{quote(name)}:generateContent"
        self._headers = {"x-goog-api-key": access.key} if access.key else {}

    async def ask(self, question: ImageQuestion) -> Reply:
        """Asks about one image."""
        try:
            response = await self._http.post(self._url, json=self._request(question), headers=self._headers)
            if not response.is_success:
                return Reply(failure=self._status(response))
            return _reply(http.read(_Response, response))
        except (httpx2.HTTPError, ValueError) as error:
            failure = http.of_error(error) or replace(
                provider_errors.UNREADABLE, error=f"not an answer of Gemini: {error}"
            )
            return Reply(failure=replace(failure, error=self.access.redact(failure.error)))

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    def _request(self, question: ImageQuestion) -> dict[str, Any]:
        sampling = self.access.sampling
        image = {"inlineData": {"mimeType": "image/png", "data": base64.b64encode(question.image_png).decode()}}
        config: dict[str, Any] = {
            "temperature": sampling.temperature,
            "topP": sampling.top_p,
            "maxOutputTokens": sampling.max_output_tokens,
            "seed": question.seed,
            "responseMimeType": "application/json",
            "responseSchema": _schema(candidate_schema.json_schema()),
        }
        if sampling.thinking_tokens is not None:
            config["thinkingConfig"] = {"thinkingBudget": sampling.thinking_tokens}
        return {
            "contents": [{"role": "user", "parts": [image, {"text": question.prompt}]}],
            "generationConfig": config,
        }

    def _status(self, response: httpx2.Response) -> provider_errors.Failure:
        body = http.text_of(response)
        try:
            error = http.read(_ErrorBody, response).error
        except ValueError:
            error = _Error()
        text = self.access.redact(f"{error.status or 'error'}: {error.message or body}")
        failure = provider_errors.of_status(response.status_code, text, response.headers)
        if response.status_code == 400 and any(word in body for word in _ACCOUNT_ERRORS):
            failure = replace(failure, action=provider_errors.FailureAction.STOP)
        if not self.access.provider.base_url:  # Google charges for no failed request; a proxy may stand for anything
            failure = replace(failure, billed=False)
        if failure.retry_after is None:
            failure = replace(failure, retry_after=_retry_delay(error))
        return failure


def _schema(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON Schema in Gemini's words."""
    made = {**schema, "type": schema["type"].upper()}
    if "items" in schema:
        made["items"] = _schema(schema["items"])
    if "properties" in schema:
        made["properties"] = {name: _schema(field) for name, field in schema["properties"].items()}
        made["propertyOrdering"] = list(schema["properties"])
    return made


def _retry_delay(error: _Error) -> float | None:
    """Seconds from google.rpc.RetryInfo, which Gemini sends instead of the header."""
    for detail in error.details or ():
        if detail is not None and (detail.type or "").endswith("RetryInfo"):
            return provider_errors.seconds((detail.delay or "").removesuffix("s"))
    return None


def _reply(response: _Response) -> Reply:
    candidate = response.candidates[0] if response.candidates else None
    parts = (candidate.content.parts if candidate and candidate.content else None) or []
    text = "".join(part.text or "" for part in parts if not part.thought)
    usage = response.usage.of(text) if response.usage else None
    if candidate is None:
        block = response.feedback.block_reason if response.feedback else None
        if block is not None:
            return Reply(CandidateOutcome.REFUSED, usage=usage, error=f"prompt blocked: {block[:200]}")
        if response.usage is None:
            return Reply(failure=replace(provider_errors.UNREADABLE, error="not an answer of Gemini"))
        return Reply(CandidateOutcome.EMPTY, usage=usage)
    reason = candidate.finish_reason or _STOP
    if reason in _REFUSALS:
        outcome = CandidateOutcome.REFUSED
    elif reason == _MAX_TOKENS:
        outcome = CandidateOutcome.TRUNCATED
    else:
        outcome = CandidateOutcome.OK if text.strip() else CandidateOutcome.EMPTY
    return Reply(outcome, text=text, usage=usage, error="" if reason in (_STOP, _MAX_TOKENS) else reason[:300])
