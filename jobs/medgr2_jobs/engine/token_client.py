"""One vLLM over HTTP: tokens in, tokens out (`/inference/v1/generate`), so that no template and no tokenizer of the
server's stands between what is asked here and what the model reads.

What a failure means: an answer of the server's that refuses (4xx) would refuse again and ends the stage for good, with
the server's own words; a server that is gone, overloaded or failing (5xx) ends the attempt only.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx2

from medgr2_api import redaction

from ..errors import ConfigError, TemporaryError

T = TypeVar("T")
JSON = dict[str, Any]

#: Seconds. An answer waits for all that is asked before it.
TIMEOUT = httpx2.Timeout(900, connect=10)
#: Requests on their way: enough to fill a server whose longest batch is 256 sequences.
IN_FLIGHT = 256
#: Seconds before a request is sent again that was lost on its way; there are as many retries.
_WAITS = (0.5, 2.0)
_TICK = 1.0
_SHOWN = 500
_RETRIED = (408, 425, 429)


@dataclass(frozen=True)
class Address:
    """Where a vLLM answers."""

    root: str
    """Such as `http://127.0.0.1:8000`."""
    api_key: str = field(default="", repr=False)

    @classmethod
    def of(cls, base_url: str, api_key: str = "") -> Address:
        """From an address that users write, with or without `/v1` behind it."""
        return cls(base_url.rstrip("/").removesuffix("/v1"), api_key)


class TokenClient:
    """Asks a vLLM; each call opens its own connections, for it runs its own event loop."""

    def __init__(self, address: Address, ended: Callable[[], str] = lambda: "") -> None:
        """
        Args:
            address: of the server.
            ended: how the server ended, when that is known; empty: it runs, as far as anybody knows.
        """
        self.address = address
        self._ended = ended
        self._headers = {"authorization": f"Bearer {address.api_key}"} if address.api_key else {}

    def generate(
        self, count: int, body: Callable[[int], JSON], between: Callable[[int], None] = lambda done: None
    ) -> list[JSON]:
        """The answers to `count` requests, in order.

        Args:
            count: how many.
            body: makes each when its turn comes: pictures are large.
            between: called at least every second with the number of answers; may raise to stop.

        Raises:
            ConfigError: the server refuses a request.
            TemporaryError: it does not answer.
        """
        answers: list[JSON] = [{}] * count
        todo, done = iter(range(count)), 0

        async def work(client: httpx2.AsyncClient) -> None:
            nonlocal done
            for index in todo:
                answers[index] = await self._post(client, "/inference/v1/generate", body(index))
                done += 1

        async def watch(workers: Sequence[asyncio.Task[None]]) -> None:
            while not all(worker.done() for worker in workers):
                await asyncio.wait(workers, timeout=_TICK)
                between(done)

        async def all_of_them(client: httpx2.AsyncClient) -> None:
            async with asyncio.TaskGroup() as group:
                await watch([group.create_task(work(client)) for _ in range(min(IN_FLIGHT, count))])

        if count:
            self._run(all_of_them)
        return answers

    def post(self, path: str, body: JSON) -> JSON:
        """One request; see `generate` for what it raises."""
        return self._run(lambda client: self._post(client, path, body))

    def models(self) -> list[JSON]:
        """What the server serves: base models and adapters, as it lists them."""
        return list(self._run(lambda client: self._send(client, "GET", "/v1/models", None)).get("data") or [])

    def healthy(self) -> bool:
        """Whether the server answers at all."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            # asked twice a second for minutes: an HTTP client would read the site's certificates each time
            where = urllib.request.Request(f"{self.address.root}/health", headers=self._headers)
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(where, timeout=5) as answer:
                return bool(answer.status == 200)
        return False

    def _run(self, ask: Callable[[httpx2.AsyncClient], Awaitable[T]]) -> T:
        async def connected() -> T:
            limits = httpx2.Limits(max_connections=IN_FLIGHT, max_keepalive_connections=IN_FLIGHT)
            # A server on site is asked directly, whatever proxy the environment names: it would carry images out.
            transport = httpx2.AsyncHTTPTransport(limits=limits, trust_env=True)
            async with httpx2.AsyncClient(timeout=TIMEOUT, transport=transport, headers=self._headers) as client:
                return await ask(client)

        try:
            return asyncio.run(connected())
        except BaseExceptionGroup as group:
            raise _first(group) from None

    async def _post(self, client: httpx2.AsyncClient, path: str, body: JSON) -> JSON:
        return await self._send(client, "POST", path, json.dumps(body).encode())

    async def _send(self, client: httpx2.AsyncClient, method: str, path: str, content: bytes | None) -> JSON:
        """What a request comes to; one that is lost on its way is sent again, for asking changes nothing."""
        url, headers = self.address.root + path, {"content-type": "application/json"}
        waits = iter(_WAITS)
        while True:
            try:
                response = await client.request(method, url, content=content, headers=headers)
                if response.status_code not in _RETRIED:
                    return self._read(path, response)
                lost = f"status {response.status_code}"
            except httpx2.HTTPError as error:
                lost = f"{type(error).__name__}: {error}"
            wait = next(waits, None)
            if wait is None or self._ended():
                raise self._gone(lost)
            await asyncio.sleep(wait)

    def _gone(self, lost: str) -> TemporaryError:
        ended = self._ended()
        return TemporaryError(f"the vLLM at {self.address.root} does not answer ({ended or self._redacted(lost)})")

    def _read(self, path: str, response: httpx2.Response) -> JSON:
        text = self._redacted(response.text[:_SHOWN])
        if response.status_code == 401:
            raise ConfigError(f"the vLLM at {self.address.root} does not take the API key (401)")
        if response.status_code == 404 and path.startswith("/inference") and "error" not in text:
            raise ConfigError(
                f"the server at {self.address.root} has no {path}: it is no vLLM, or older than 0.32; what else it "
                "speaks would put its own template and tokenizer between the question and the model"
            )
        if response.is_client_error:
            raise ConfigError(f"the vLLM at {self.address.root} refuses {path} ({response.status_code}): {text}")
        if not response.is_success:
            ended = self._ended()
            raise TemporaryError(
                f"the vLLM at {self.address.root} fails on {path} ({response.status_code}): {ended or text}"
            )
        try:
            found = response.json() if response.content[:1] == b"{" else {}
        except ValueError as error:
            raise TemporaryError(f"the vLLM at {self.address.root} answers {path} with no JSON: {error}") from None
        return found if isinstance(found, dict) else {}

    def _redacted(self, text: str) -> str:
        plain = redaction.redact(text)
        return plain.replace(self.address.api_key, "…") if self.address.api_key else plain


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Of errors at the same time the first: the others are of the same cause."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
