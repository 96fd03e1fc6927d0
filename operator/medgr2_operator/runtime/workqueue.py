"""The work queue: each key once, one worker per key at a time, errors tried again with growing delays.

As client-go's: a key that is added while a worker has it is worked on once more afterwards.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

_log = logging.getLogger(__name__)
K = TypeVar("K")

BASE_DELAY, MAX_DELAY = 0.2, 120.0  # seconds


@dataclass(frozen=True, order=True)
class CycleKey:
    """A cycle in the queue."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


ReconcileResult = Literal["success", "requeue_after", "error"]
"""controller-runtime's names for how the work on a key ended."""


class QueueObserver:
    """Is notified of what happens in the queue; the metrics are."""

    def added(self) -> None:
        """A key waits for a worker."""

    def taken(self, waited: float) -> None:
        """A worker has a key that waited so many seconds."""

    def done(self, seconds: float, result: ReconcileResult) -> None:
        """The work on a key ended after so many seconds."""

    def retried(self) -> None:
        """A key whose work failed will be worked on again."""


class WorkQueue(Generic[K]):
    """Keys to work on, now or later."""

    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        self.observer = QueueObserver()
        self._ready: asyncio.Queue[K] = asyncio.Queue()
        self._since: dict[K, float] = {}
        """Keys that wait, since when."""
        self._working: dict[K, float] = {}
        """Keys that workers have, since when."""
        self._again: set[K] = set()
        self._failures: dict[K, int] = {}
        self._later: list[tuple[float, int, K]] = []
        self._due: dict[K, float] = {}
        """The one delayed add of each key that counts."""
        self._numbers = itertools.count()
        self._wake = asyncio.Event()
        self._jitter = jitter

    def add(self, key: K) -> None:
        """Work on this as soon as possible."""
        if key in self._working:
            self._again.add(key)
        elif key not in self._since:
            self._since[key] = time.monotonic()
            self._ready.put_nowait(key)
            self.observer.added()

    def add_after(self, key: K, seconds: float) -> None:
        """Work on this in `seconds`, unless an earlier time is set already."""
        due = time.monotonic() + max(0.0, seconds)
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            heapq.heappush(self._later, (due, next(self._numbers), key))
            self._wake.set()

    @property
    def depth(self) -> int:
        """Keys that wait for a worker."""
        return len(self._since)

    @property
    def unfinished(self) -> int:
        """Keys that a worker has."""
        return len(self._working)

    @property
    def working_seconds(self) -> list[float]:
        """For how long workers have had the keys they have."""
        now = time.monotonic()
        return [now - since for since in list(self._working.values())]  # asked by another thread, so from a copy

    async def run(self, work: Callable[[K], Awaitable[float | None]], workers: int) -> None:
        """Works for ever.

        Args:
            work: does what a key needs; returns the seconds after which it wants to see the key again.
            workers: keys at the same time.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._move_due())
            for _ in range(workers):
                group.create_task(self._worker(work))

    async def _worker(self, work: Callable[[K], Awaitable[float | None]]) -> None:
        while True:
            key = await self._ready.get()
            started = time.monotonic()
            self.observer.taken(started - self._since.pop(key))
            self._working[key] = started
            self._due.pop(key, None)  # it is reconciled now; the work says when to do so again
            result: ReconcileResult = "error"
            try:
                after = await work(key)
                self._failures.pop(key, None)
                result = "success"
                if after is not None:
                    result = "requeue_after"
                    self.add_after(key, after)
            except Exception as error:
                failures = self._failures[key] = self._failures.get(key, 0) + 1
                delay = min(MAX_DELAY, BASE_DELAY * 2 ** min(failures - 1, 16)) * (0.5 + self._jitter())
                self.observer.retried()
                _log.warning("%s: failed %d times, next try in %.1f s: %s", key, failures, delay, error, exc_info=True)
                self.add_after(key, delay)
            finally:
                del self._working[key]
                self.observer.done(time.monotonic() - started, result)
                if key in self._again:
                    self._again.discard(key)
                    self.add(key)

    async def _move_due(self) -> None:
        """Moves delayed keys that are due to the ready ones."""
        while True:
            self._wake.clear()
            while self._later and self._later[0][0] <= time.monotonic():
                due, _, key = heapq.heappop(self._later)
                if self._due.get(key) == due:
                    del self._due[key]
                    self.add(key)
            wait = self._later[0][0] - time.monotonic() if self._later else None
            try:
                await asyncio.wait_for(self._wake.wait(), wait)
            except TimeoutError:
                continue
