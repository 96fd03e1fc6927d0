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
_CONGESTED = 0.25
#: Requests that make a round at least: fewer say too little.
_ROUND = 16
_SLOWER = 2.0
#: Weight of the newest round in the usual latency.
_NEWEST = 0.25
#: Seconds of waiting before the first and the last retry; doubled from one to the next.
BACKOFF, MAX_BACKOFF = 0.5, 30.0
#: Who is asked to wait longer than this waits outside of the stage.
LONGEST_PAUSE = 600.0


class Stopped(Exception):
    """Asked to stop: no further request is sent."""


@dataclass
class Turn:
    """A request in flight: what came of it, to be filled in."""

    answered: bool = False
    pushback: bool = False
    tokens: int | None = None
    """Tokens it took, in and out; None: not known."""


class Pace:
    """Shared by all workers of a shard."""

    def __init__(self, concurrency: int, rate_limit: RateLimit, shards: int, most_tokens: int) -> None:
        """
        Args:
            concurrency: requests in flight at most.
            rate_limit: of all shards together; each takes its part.
            shards: parts that the work is divided into.
            most_tokens: what one request may take at most, in and out.
        """
        self.most = concurrency
        self.limit = float(concurrency)
        self.stopping = asyncio.Event()
        self._running = 0
        self._freed = asyncio.Condition()
        self._paused_until = 0.0
        self._era = 0
        self._answered: list[float] = []
        self._refused = 0
        self._usual: float | None = None
        self._tokens = float(most_tokens)
        self._random = random.Random()  # not the stage's: waiting must not change what is drawn
        requests, tokens = rate_limit.requests_per_minute, rate_limit.tokens_per_minute
        # a bucket of one request, not of a minute's: a full one at the start would let twice as many through
        self._requests = AsyncLimiter(1, 60 * shards / requests) if requests else None
        self._capacity = max(float(most_tokens), (tokens or 0) / shards / 60)
        self._budget = AsyncLimiter(self._capacity, 60 * shards * self._capacity / tokens) if tokens else None

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """Waits until a request may be sent; the block sends it and fills in what came of it.

        Raises:
            Stopped: asked to stop meanwhile.
        """
        async with self._freed:
            await self._freed.wait_for(lambda: self._running < max(1, int(self.limit)) or self.stopping.is_set())
            self._check_stop()
            self._running += 1
        clock = asyncio.get_running_loop().time
        try:
            await self._pause(clock)
            if self._requests:
                await self._acquire(self._requests, 1)
            if self._budget:
                await self._acquire(self._budget, min(self._tokens, self._capacity))
            era, began, turn = self._era, clock(), Turn()
            yield turn
            if era == self._era:
                self._judge(turn, clock() - began)
            if turn.tokens is not None:
                self._tokens += (turn.tokens - self._tokens) / 8
        finally:
            async with self._freed:
                self._running -= 1
                self._freed.notify_all()

    def pause(self, seconds: float) -> None:
        """The provider asks to be left alone: no worker sends anything meanwhile.

        Raises:
            TemporaryError: for so long that the stage had better end.
        """
        if seconds > LONGEST_PAUSE:
            raise TemporaryError(
                f"the provider asks to be left alone for {seconds:.0f} s (Retry-After); run again then: "
                "what was answered is kept"
            )
        until = asyncio.get_running_loop().time() + seconds
        self._paused_until = max(self._paused_until, until)

    async def back_off(self, retry: int) -> None:
        """Waits before a retry, the first one being 1: exponentially longer, with jitter. Raises Stopped."""
        longest = min(MAX_BACKOFF, BACKOFF * 2 ** (retry - 1))
        await self.sleep(longest * self._random.uniform(0.5, 1))

    async def sleep(self, seconds: float) -> None:
        """Waits. Raises Stopped when asked to stop, at once."""
        self._check_stop()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)
        self._check_stop()

    async def stop(self) -> None:
        """Wakes all that wait: nothing is sent any more."""
        self.stopping.set()
        async with self._freed:
            self._freed.notify_all()

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
            raise Stopped

    def _judge(self, turn: Turn, seconds: float) -> None:
        """Counts a request; at the end of a round, decides."""
        if turn.answered:
            self._answered.append(seconds)
        elif turn.pushback:
            self._refused += 1
        count = len(self._answered) + self._refused
        if count < max(_ROUND, self.limit):
            return
        congested = self._refused >= _CONGESTED * count
        usual = statistics.median(self._answered) if self._answered else None
        slower = bool(usual and self._usual and usual >= _SLOWER * self._usual)
        if congested or slower:
            self.limit = max(1.0, self.limit // 2)
            self._era += 1
        else:
            self.limit = min(float(self.most), self.limit + 1)
        if usual is not None:
            # after a step the new latency is the usual one: a provider that has become slow is halved for once
            known = self._usual if self._usual is not None and not slower else usual
            self._usual = known + _NEWEST * (usual - known)
        self._answered, self._refused = [], 0
