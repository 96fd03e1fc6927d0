"""How many requests are in flight, and when the next may start: additive increase, multiplicative decrease (AIMD).

The limit starts at `generator.concurrency`. It is judged once a round, a round being as many requests as may be in
flight: it is halved when a quarter of a round met 429, 5xx or lost connections, or when answers took twice as long as
before; otherwise it grows by one. A few refusals are no congestion: they are asked again, and that is all. Requests
that started before the limit was halved say nothing about the new limit, and are not counted.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from aiolimiter import AsyncLimiter

from medgr2_api.generator import RateLimit

from ..errors import TemporaryError

#: Share of a round that must be refused to count as congestion.
_CONGESTED_SHARE = 0.25
#: Requests that make a round at least: fewer say too little.
_MIN_ROUND = 16
#: Latency, as a multiple of the usual one, that counts as congestion.
_SLOWDOWN_FACTOR = 2.0
#: Weight of the newest round in the usual latency.
_LATENCY_WEIGHT = 0.25
#: Seconds of waiting before the first and the last retry; doubled from one to the next.
BACKOFF, MAX_BACKOFF = 0.5, 30.0
#: Seconds of Retry-After that a stage waits at most; for a longer one it ends, and is retried.
MAX_RETRY_AFTER = 600.0


class StopRequested(Exception):
    """Asked to stop: no further request is sent."""


@dataclass
class RequestSlot:
    """A request in flight: what came of it, to be filled in."""

    answered: bool = False
    throttled: bool = False
    tokens: int | None = None
    """Tokens it took, in and out; None: not known."""


class RateController:
    """The AIMD limit, the rate limits and the pauses that all workers of a shard share."""

    def __init__(self, concurrency: int, rate_limit: RateLimit, shards: int, max_request_tokens: int) -> None:
        """
        Args:
            concurrency: requests in flight at most.
            rate_limit: of all shards together; each takes its part.
            shards: parts that the work is divided into.
            max_request_tokens: what one request may take at most, in and out.
        """
        self.max_concurrency = concurrency
        self.limit = float(concurrency)
        self.stopping = asyncio.Event()
        self._in_flight = 0
        self._slot_freed = asyncio.Condition()
        self._paused_until = 0.0
        self._epoch = 0
        self._latencies: list[float] = []
        self._throttled = 0
        self._usual_latency: float | None = None
        self._mean_tokens = float(max_request_tokens)
        self._random = random.Random()  # not the stage's: waiting must not change what is drawn
        requests, tokens = rate_limit.requests_per_minute, rate_limit.tokens_per_minute
        # a bucket of one request, not of a minute's: a full one at the start would let twice as many through
        self._request_limiter = AsyncLimiter(1, 60 * shards / requests) if requests else None
        self._token_capacity = max(float(max_request_tokens), (tokens or 0) / shards / 60)
        per_minute = 60 * shards * self._token_capacity
        self._token_limiter = AsyncLimiter(self._token_capacity, per_minute / tokens) if tokens else None

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[RequestSlot]:
        """Waits until a request may be sent; the block sends it and fills in what came of it.

        Raises:
            StopRequested: asked to stop meanwhile.
        """
        async with self._slot_freed:
            await self._slot_freed.wait_for(lambda: self._in_flight < max(1, int(self.limit)) or self.stopping.is_set())
            self._check_stop()
            self._in_flight += 1
        clock = asyncio.get_running_loop().time
        try:
            await self._pause(clock)
            if self._request_limiter:
                await self._acquire(self._request_limiter, 1)
            if self._token_limiter:
                await self._acquire(self._token_limiter, min(self._mean_tokens, self._token_capacity))
            epoch, began, slot = self._epoch, clock(), RequestSlot()
            yield slot
            if epoch == self._epoch:
                self._record(slot, clock() - began)
            if slot.tokens is not None:
                self._mean_tokens += (slot.tokens - self._mean_tokens) / 8
        finally:
            async with self._slot_freed:
                self._in_flight -= 1
                self._slot_freed.notify_all()

    def pause(self, seconds: float) -> None:
        """Retry-After: no worker sends anything for so many seconds.

        Raises:
            TemporaryError: longer than `MAX_RETRY_AFTER`.
        """
        if seconds > MAX_RETRY_AFTER:
            raise TemporaryError(
                f"the provider asks for a pause of {seconds:.0f} s (Retry-After), longer than a stage waits; "
                "run again then: what was answered is kept"
            )
        until = asyncio.get_running_loop().time() + seconds
        self._paused_until = max(self._paused_until, until)

    async def back_off(self, retry: int) -> None:
        """Waits before a retry, the first one being 1: exponentially longer, with jitter. Raises StopRequested."""
        longest = min(MAX_BACKOFF, BACKOFF * 2 ** (retry - 1))
        await self.sleep(longest * self._random.uniform(0.5, 1))

    async def sleep(self, seconds: float) -> None:
        """Waits. Raises StopRequested when asked to stop, at once."""
        self._check_stop()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)
        self._check_stop()

    async def stop(self) -> None:
        """Wakes all that wait: nothing is sent any more."""
        self.stopping.set()
        async with self._slot_freed:
            self._slot_freed.notify_all()

    async def _pause(self, clock: Callable[[], float]) -> None:
        while (left := self._paused_until - clock()) > 0:
            await self.sleep(left + self._random.uniform(0, min(1.0, left / 10)))  # not all at the same moment

    async def _acquire(self, limiter: AsyncLimiter, amount: float) -> None:
        self._check_stop()
        waits = asyncio.create_task(limiter.acquire(amount)), asyncio.create_task(self.stopping.wait())
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        self._check_stop()

    def _check_stop(self) -> None:
        if self.stopping.is_set():
            raise StopRequested

    def _record(self, slot: RequestSlot, seconds: float) -> None:
        """Counts a request; at the end of a round, decides."""
        if slot.answered:
            self._latencies.append(seconds)
        elif slot.throttled:
            self._throttled += 1
        count = len(self._latencies) + self._throttled
        if count < max(_MIN_ROUND, self.limit):
            return
        congested = self._throttled >= _CONGESTED_SHARE * count
        latency = statistics.median(self._latencies) if self._latencies else None
        slower = bool(latency and self._usual_latency and latency >= _SLOWDOWN_FACTOR * self._usual_latency)
        if congested or slower:
            self.limit = max(1.0, self.limit // 2)
            self._epoch += 1
        else:
            self.limit = min(float(self.max_concurrency), self.limit + 1)
        if latency is not None:
            # after a step the new latency is the usual one: a provider that has become slow is halved for once
            previous = self._usual_latency if self._usual_latency is not None and not slower else latency
            self._usual_latency = previous + _LATENCY_WEIGHT * (latency - previous)
        self._latencies, self._throttled = [], 0
