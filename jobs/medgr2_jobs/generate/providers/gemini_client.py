"""One question to Google's Gemini API."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from google import genai
from google.genai import errors, types

from ...store.rows import CandidateOutcome
from .. import candidate_schema, provider_errors
from ..pricing import TokenUsage
from . import http
from .base import ImageQuestion, ProviderAccess, Reply

_MAX_TOKENS = "MAX_TOKENS"
_STOP = "STOP"
#: Finish reasons that are a refusal: safety, or a text that may not be repeated.
_REFUSALS = frozenset(
    {"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT",
     "IMAGE_RECITATION", "LANGUAGE", "ESCALATION", "MODEL_ARMOR"}
)  # fmt: skip
#: What a 400 says when it is about the account, not about the question.
_ACCOUNT_ERRORS = ("API_KEY_INVALID", "FAILED_PRECONDITION", "API key not valid")


class GeminiClient:
    """A Gemini model. Its answers keep to the schema, so none is sent back."""

    repairs = False

    def __init__(self, access: ProviderAccess) -> None:
        self.access = access
        self._http = http.connections(access.provider.concurrency)
        options = types.HttpOptions(
            base_url=access.provider.base_url or None,
            timeout=int(1000 * (http.TIMEOUT.read or 0)),
            retry_options=types.HttpRetryOptions(
                attempts=1
            ),  # without it, lost connections are retried behind our back
            httpx_async_client=self._http,
        )
        self._genai = genai.Client(api_key=access.key, http_options=options, vertexai=False)
        json_schema = types.JSONSchema.model_validate(candidate_schema.json_schema())
        self._schema = types.Schema.from_json_schema(json_schema=json_schema, api_option="GEMINI_API")

    async def ask(self, question: ImageQuestion) -> Reply:
        """Asks about one image."""
        sampling = self.access.sampling
        config = types.GenerateContentConfig(
            response_mime_type="application/json",
            response_schema=self._schema,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_output_tokens=sampling.max_tokens,
            seed=question.seed,
        )
        image = types.Part.from_bytes(data=question.image_png, mime_type="image/png")
        content = types.Content(role="user", parts=[image, types.Part(text=question.prompt)])
        try:
            response = await self._genai.aio.models.generate_content(
                model=self.access.provider.model, contents=content, config=config
            )
            return _reply(response)
        except errors.APIError as error:
            return Reply(failure=self._status(error))
        except Exception as error:
            failure = http.of_error(error)
            if failure is None and not isinstance(error, ValueError):
                raise
            failure = failure or replace(provider_errors.UNREADABLE, error=f"not an answer of Gemini: {error}")
            return Reply(failure=replace(failure, error=self.access.redact(failure.error)))

    async def close(self) -> None:
        """Closes the connections."""
        await self._genai.aio.aclose()
        await self._http.aclose()

    def _status(self, error: errors.APIError) -> provider_errors.Failure:
        headers = getattr(error.response, "headers", None) or {}
        details = json.dumps(error.details) if isinstance(error.details, dict) else str(error.details)
        text = self.access.redact(f"{error.status}: {error.message or details}")
        failure = provider_errors.of_status(error.code, text, headers)
        if error.code == 400 and any(word in details for word in _ACCOUNT_ERRORS):
            failure = replace(failure, action=provider_errors.FailureAction.STOP)
        if not self.access.provider.base_url:  # Google charges for no failed request; a proxy may stand for anything
            failure = replace(failure, billed=False)
        if failure.retry_after is None:
            failure = replace(failure, retry_after=_retry_delay(error.details))
        return failure


def _retry_delay(details: Any) -> float | None:
    """Seconds from google.rpc.RetryInfo, which Gemini sends instead of the header."""
    body = details.get("error", details) if isinstance(details, dict) else {}
    for detail in body.get("details") or []:
        if isinstance(detail, dict) and str(detail.get("@type", "")).endswith("RetryInfo"):
            try:
                return max(0.0, float(str(detail.get("retryDelay", "")).removesuffix("s")))
            except ValueError:
                return None
    return None


def _reply(response: types.GenerateContentResponse) -> Reply:
    usage = _usage(response.usage_metadata)
    if not response.candidates:
        block = response.prompt_feedback.block_reason if response.prompt_feedback else None
        if block is not None:
            return Reply(CandidateOutcome.REFUSED, usage=usage, error=f"prompt blocked: {block.value}")
        if response.usage_metadata is None:
            return Reply(failure=replace(provider_errors.UNREADABLE, error="not an answer of Gemini"))
        return Reply(CandidateOutcome.EMPTY, usage=usage)
    candidate = response.candidates[0]
    reason = candidate.finish_reason.value if candidate.finish_reason else _STOP
    parts = (candidate.content.parts if candidate.content else None) or []
    text = "".join(part.text or "" for part in parts if not part.thought)
    if reason in _REFUSALS:
        outcome = CandidateOutcome.REFUSED
    elif reason == _MAX_TOKENS:
        outcome = CandidateOutcome.TRUNCATED
    else:
        outcome = CandidateOutcome.OK if text.strip() else CandidateOutcome.EMPTY
    return Reply(outcome, text=text, usage=usage, error="" if reason in (_STOP, _MAX_TOKENS) else reason)


def _usage(metadata: types.GenerateContentResponseUsageMetadata | None) -> TokenUsage | None:
    """Prompt tokens include what came from the cache. A block before the model ran has prompt tokens only."""
    if metadata is None or metadata.prompt_token_count is None:
        return None
    return TokenUsage(
        metadata.prompt_token_count + (metadata.tool_use_prompt_token_count or 0),
        metadata.candidates_token_count or 0,
        metadata.thoughts_token_count or 0,
    )
