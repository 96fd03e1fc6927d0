"""How many requests may be in flight: AIMD by rounds, pauses for all, rate limits."""

from __future__ import annotations

import asyncio

import pytest

from medgr2_api.generator import RateLimit
from medgr2_jobs.errors import TemporaryError
from medgr2_jobs.generate.rate_control import MAX_RETRY_AFTER, RateController, RequestSlot, StopRequested


def controller(concurrency: int = 64, **limits: float) -> RateController:
    return RateController(concurrency, RateLimit.model_validate(limits), 1, 1000)


def round_of(rate: RateController, refused: int, count: int = 64, seconds: float = 1.0) -> float:
    """The limit after a round with so many refusals."""
    for number in range(count):
        rate._record(RequestSlot(answered=number >= refused, throttled=number < refused), seconds)
    return rate.limit


def test_a_quarter_of_refusals_halves_and_a_round_without_adds_one() -> None:
    rate = controller()
    assert round_of(rate, 0) == 64
    assert round_of(rate, 15) == 64, "a few refusals are no congestion"
    assert round_of(rate, 16) == 32
    assert round_of(rate, 0, 32) == 33
    assert round_of(rate, 33, 33) == 16


def test_between_one_and_the_users_number() -> None:
    rate = controller(4)
    for _ in range(5):
        limit = round_of(rate, 16, 16)
    assert limit == 1
    for _ in range(9):
        limit = round_of(rate, 0, 16)
    assert limit == 4


def test_latency_that_doubles_halves_once_and_is_then_the_usual_one() -> None:
    rate = controller()
    assert round_of(rate, 0, seconds=1.0) == 64
    assert round_of(rate, 0, seconds=1.9) == 64
    assert round_of(rate, 0, seconds=8.0) == 32
    assert round_of(rate, 0, 32, seconds=8.0) == 33
    assert round_of(rate, 0, 33, seconds=8.0) == 34


def test_requests_of_before_the_halving_are_not_counted() -> None:
    async def scenario() -> float:
        rate = controller(16)
        leave = asyncio.Event()

        async def late() -> None:
            async with rate.slot() as slot:
                await leave.wait()
                slot.throttled = True

        waiting = [asyncio.create_task(late()) for _ in range(16)]
        await asyncio.sleep(0)
        round_of(rate, 16, 16)
        assert rate.limit == 8
        leave.set()
        await asyncio.gather(*waiting)
        return rate.limit

    assert asyncio.run(scenario()) == 8


def test_no_more_than_the_limit_at_a_time() -> None:
    async def scenario() -> int:
        rate = controller(3)
        now = most = 0

        async def request() -> None:
            nonlocal now, most
            async with rate.slot() as slot:
                now += 1
                most = max(most, now)
                await asyncio.sleep(0.001)
                now -= 1
                slot.answered = True

        await asyncio.gather(*(request() for _ in range(20)))
        return most

    assert asyncio.run(scenario()) == 3


def test_a_pause_is_for_all_and_a_stop_ends_it() -> None:
    async def scenario() -> list[str]:
        rate = controller()
        rate.pause(500)
        events: list[str] = []

        async def request() -> None:
            try:
                async with rate.slot():
                    events.append("sent")
            except StopRequested:
                events.append("stopped")

        waiting = [asyncio.create_task(request()) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert events == []
        await rate.stop()
        await asyncio.gather(*waiting)
        return events

    assert asyncio.run(scenario()) == ["stopped"] * 3


def test_a_very_long_pause_is_spent_outside() -> None:
    async def scenario() -> None:
        controller().pause(MAX_RETRY_AFTER + 1)

    with pytest.raises(TemporaryError, match="pause of 601 s"):
        asyncio.run(scenario())


def test_rate_limits_let_no_burst_through() -> None:
    async def sent(rate: RateController) -> int:
        count = 0

        async def request() -> None:
            nonlocal count
            async with rate.slot() as slot:
                count += 1
                slot.answered, slot.tokens = True, 1000

        waiting = [asyncio.create_task(request()) for _ in range(20)]
        await asyncio.sleep(0.2)
        await rate.stop()
        await asyncio.gather(*waiting, return_exceptions=True)
        return count

    assert asyncio.run(sent(controller())) == 20
    assert asyncio.run(sent(controller(requestsPerMinute=1))) == 1
    assert asyncio.run(sent(controller(tokensPerMinute=1000))) == 1
