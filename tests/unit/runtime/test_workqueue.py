"""The work queue: nothing is lost, nothing runs twice at a time, failures wait longer and longer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import pairwise

from medgr2_operator.runtime.workqueue import BASE_DELAY, QueueObserver, ReconcileResult, WorkQueue

Work = Callable[[str], Awaitable[float | None]]


class CountingObserver(QueueObserver):
    """Counts what a queue tells."""

    def __init__(self, queue: WorkQueue[str]) -> None:
        queue.observer = self
        self.adds = self.retries = 0
        self.waits: list[float] = []
        self.results: Counter[ReconcileResult] = Counter()

    def added(self) -> None:
        self.adds += 1

    def taken(self, waited: float) -> None:
        self.waits.append(waited)

    def done(self, seconds: float, result: ReconcileResult) -> None:
        self.results[result] += 1

    def retried(self) -> None:
        self.retries += 1


async def during(queue: WorkQueue[str], work: Work, until: Callable[[], bool], workers: int = 4) -> None:
    """Runs the queue until something holds."""
    task = asyncio.create_task(queue.run(work, workers))
    async with asyncio.timeout(20):
        while not until():
            await asyncio.sleep(0.01)
    assert not task.done(), "the queue ended by itself"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_a_key_added_many_times_is_worked_on_once() -> None:
    async def test() -> None:
        queue: WorkQueue[str] = WorkQueue()
        count = CountingObserver(queue)
        done: list[str] = []

        async def work(key: str) -> None:
            assert len(queue.working_seconds) == queue.unfinished > 0
            done.append(key)

        for _ in range(100):
            queue.add("a")
        queue.add("b")
        assert queue.depth == 2
        await during(queue, work, lambda: len(done) >= 2)
        assert sorted(done) == ["a", "b"]
        assert (queue.depth, queue.unfinished, queue.working_seconds) == (0, 0, [])
        assert (count.adds, len(count.waits)) == (2, 2)

    asyncio.run(test())


def test_one_worker_per_key_and_news_meanwhile_are_not_lost() -> None:
    async def test() -> None:
        queue: WorkQueue[str] = WorkQueue()
        running: Counter[str] = Counter()
        seen: list[str] = []

        async def work(key: str) -> None:
            running[key] += 1
            assert running[key] == 1, "two workers on one key"
            if len(seen) < 5:
                queue.add(key)  # something happened while we were looking
                queue.add(key)
            await asyncio.sleep(0.01)
            seen.append(key)
            running[key] -= 1

        queue.add("a")
        await during(queue, work, lambda: len(seen) >= 6)
        assert len(seen) == 6

    asyncio.run(test())


def test_failures_are_tried_again_and_others_are_not_held_up() -> None:
    async def test() -> None:
        queue: WorkQueue[str] = WorkQueue(jitter=lambda: 0.5)
        count = CountingObserver(queue)
        loop = asyncio.get_running_loop()
        tries: list[float] = []
        good: list[str] = []

        async def work(key: str) -> None:
            if key == "good":
                good.append(key)
                return
            tries.append(loop.time())
            if len(tries) < 4:
                raise RuntimeError("not yet")

        queue.add("bad")
        queue.add("good")
        await during(queue, work, lambda: len(tries) >= 4, workers=1)
        waits = [after - before for before, after in pairwise(tries)]
        assert good == ["good"]
        for number, wait in enumerate(waits):
            assert wait >= BASE_DELAY * 2**number * 0.95
        assert (count.retries, count.results) == (3, {"error": 3, "success": 2})

    asyncio.run(test())


def test_the_earliest_of_several_delays_counts_and_only_once() -> None:
    async def test() -> None:
        queue: WorkQueue[str] = WorkQueue()
        count = CountingObserver(queue)
        done: list[str] = []

        async def work(key: str) -> None:
            done.append(key)

        for seconds in (30, 0.2, 0.05, 20, 0.1):  # 0.2 stays in the heap and comes due
            queue.add_after("a", seconds)
        end = asyncio.get_running_loop().time() + 0.4  # beyond the second delay: it must not act, and harm nothing
        await during(queue, work, lambda: asyncio.get_running_loop().time() > end)
        assert done == ["a"]
        assert count.adds == 1

    asyncio.run(test())


def test_work_says_when_to_look_again() -> None:
    async def test() -> None:
        queue: WorkQueue[str] = WorkQueue()
        count = CountingObserver(queue)
        done: list[str] = []

        async def work(key: str) -> float | None:
            done.append(key)
            return 0.01 if len(done) < 3 else None

        queue.add("a")
        await during(queue, work, lambda: len(done) >= 3)
        await asyncio.sleep(0.05)
        assert len(done) == 3
        assert count.results == {"requeue_after": 2, "success": 1}

    asyncio.run(test())
