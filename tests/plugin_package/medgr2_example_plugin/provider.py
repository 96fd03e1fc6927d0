"""A provider of its own protocol: `POST <baseURL>/describe` takes an image and a text, and answers with a text."""

from __future__ import annotations

import base64
from dataclasses import replace

import httpx2

from medgr2_jobs.generate import candidate_schema, provider_errors
from medgr2_jobs.generate.pricing import TokenUsage
from medgr2_jobs.generate.providers import http
from medgr2_jobs.generate.providers.base import ImageQuestion, ProviderAccess, Reply


class DescribeClient:
    """One question, one request, one reply. Retries, rate limits, money and the journal are the stage's."""

    repairs = False

    def __init__(self, access: ProviderAccess, *, style: str = "plain") -> None:
        self.access = access
        self.style = style
        self._http = http.connections(access.provider.concurrency)

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
        except httpx2.HTTPError as error:
            failure = http.of_error(error) or provider_errors.LOST
            return Reply(failure=replace(failure, error=self.access.redact(failure.error or str(error))))
        if response.status_code != 200:
            text = self.access.redact(response.text)
            return Reply(failure=provider_errors.of_status(response.status_code, text, response.headers))
        try:
            answer = response.json()
            usage = TokenUsage(answer["tokens"]["in"], answer["tokens"]["out"])
        except (ValueError, KeyError, TypeError) as error:
            return Reply(failure=replace(provider_errors.UNREADABLE, error=f"not an answer: {error!r}"))
        return Reply(text=answer["text"], usage=usage)

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()
