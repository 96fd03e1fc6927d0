"""A provider of its own protocol: `POST <baseURL>/describe` takes an image and a text, and answers with a text."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Annotated

import httpx2
from pydantic import Field

from medgr2_jobs.generate import candidate_schema, provider_errors
from medgr2_jobs.generate.providers import http
from medgr2_jobs.generate.providers.base import ImageQuestion, ProviderAccess, Reply
from medgr2_jobs.generate.providers.http import AnswerModel, TokenCount


class Tokens(AnswerModel):
    """What the server counts."""

    input: Annotated[TokenCount, Field(alias="in")] = None
    output: Annotated[TokenCount, Field(alias="out")] = None


class Answer(AnswerModel):
    """What the server says. A body of another form is no answer, and no traceback either."""

    text: str
    tokens: Annotated[Tokens | None, http.OPTIONAL] = None


class DescribeClient:
    """One question, one request, one reply. Retries, rate limits, money and the journal are the stage's."""

    repairs = False

    def __init__(self, access: ProviderAccess, *, style: str = "plain") -> None:
        self.access = access
        self.style = style
        self._http = http.connections(access.provider)

    async def ask(self, question: ImageQuestion) -> Reply:
        """Asks about one image."""
        request = {
            "model": self.access.provider.model,
            "style": self.style,
            "image": base64.b64encode(question.image_png).decode(),
            "text": question.prompt,
            "form": candidate_schema.json_schema(),
            "longest": self.access.sampling.max_tokens,
            "seed": question.seed,
        }
        headers = {"authorization": f"Bearer {self.access.key}"} if self.access.key else {}
        try:
            response = await self._http.post(f"{self.access.provider.base_url}/describe", json=request, headers=headers)
            if not response.is_success:
                text = self.access.redact(http.text_of(response))
                return Reply(failure=provider_errors.of_status(response.status_code, text, response.headers))
            answer = http.read(Answer, response)
        except (httpx2.HTTPError, ValueError) as error:
            failure = http.of_error(error) or replace(provider_errors.UNREADABLE, error=f"not an answer: {error}")
            return Reply(failure=replace(failure, error=self.access.redact(failure.error)))
        counted = answer.tokens or Tokens()
        return Reply(text=answer.text, usage=http.usage(answer.text, counted.input, counted.output, 0))

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()
