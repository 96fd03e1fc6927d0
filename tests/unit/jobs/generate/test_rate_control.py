"""How many requests may be in flight: AIMD by rounds, pauses for all, rate limits."""

from __future__ import annotations

import asyncio

import pytest

from medgr2_api.generator import RateLimit
from medgr2_jobs.errors import TemporaryError
from medgr2_jobs.generate.rate_control import LONGEST_PAUSE, Pace, Stopped, Turn


def pace(concurrency: int = 64, **limits: float) -> Pace:
    return Pace(concurrency, RateLimit.model_validate(limits), 1, 1000)


def round_of(one: Pace, refused: int, count: int = 64, seconds: float = 1.0) -> float:
    """The limit after a round with so many refusals."""
    for number in range(count):
        one._judge(Turn(answered=number >= refused, pushback=number < refused), seconds)
    return one.limit


def test_a_quarter_of_refusals_halves_and_a_round_without_adds_one() -> None:
    one = pace()
    assert round_of(one, 0) == 64
    assert round_of(one, 15) == 64, "a few refusals are no congestion"
    assert round_of(one, 16) == 32
    assert round_of(one, 0, 32) == 33
    assert round_of(one, 33, 33) == 16


def test_between_one_and_the_users_number() -> None:
    one = pace(4)
    for _ in range(5):
        limit = round_of(one, 16, 16)
    assert limit == 1
    for _ in range(9):
        limit = round_of(one, 0, 16)
    assert limit == 4


def test_latency_that_doubles_halves_once_and_is_then_the_usual_one() -> None:
    one = pace()
    assert round_of(one, 0, seconds=1.0) == 64
    assert round_of(one, 0, seconds=1.9) == 64
    assert round_of(one, 0, seconds=8.0) == 32
    assert round_of(one, 0, 32, seconds=8.0) == 33
    assert round_of(one, 0, 33, seconds=8.0) == 34


def test_requests_of_before_the_halving_are_not_counted() -> None:
    async def scenario() -> float:
        one = pace(16)
        leave = asyncio.Event()

        async def late() -> None:
            async with one.turn() as turn:
                await leave.wait()
                turn.pushback = True

        waiting = [asyncio.create_task(late()) for _ in range(16)]
        await asyncio.sleep(0)
        round_of(one, 16, 16)
        assert one.limit == 8
        leave.set()
        await asyncio.gather(*waiting)
        return one.limit

    assert asyncio.run(scenario()) == 8


def test_no_more_than_the_limit_at_a_time() -> None:
    async def scenario() -> int:
        one = pace(3)
        now = most = 0

        async def request() -> None:
            nonlocal now, most
            async with one.turn() as turn:
                now += 1
                most = max(most, now)
                await asyncio.sleep(0.001)
                now -= 1
                turn.answered = True

        await asyncio.gather(*(request() for _ in range(20)))
        return most

    assert asyncio.run(scenario()) == 3


def test_a_pause_is_for_all_and_a_stop_ends_it() -> None:
    async def scenario() -> list[str]:
        one = pace()
        one.pause(500)
        told: list[str] = []

        async def request() -> None:
            try:
                async with one.turn():
                    told.append("sent")
            except Stopped:
                told.append("stopped")

        waiting = [asyncio.create_task(request()) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert told == []
        await one.stop()
        await asyncio.gather(*waiting)
        return told

    assert asyncio.run(scenario()) == ["stopped"] * 3


def test_a_very_long_pause_is_spent_outside() -> None:
    async def scenario() -> None:
        pace().pause(LONGEST_PAUSE + 1)

    with pytest.raises(TemporaryError, match="left alone for 601 s"):
        asyncio.run(scenario())


def test_rate_limits_let_no_burst_through() -> None:
    async def sent(one: Pace) -> int:
        count = 0

        async def request() -> None:
            nonlocal count
            async with one.turn() as turn:
                count += 1
                turn.answered, turn.tokens = True, 1000

        waiting = [asyncio.create_task(request()) for _ in range(20)]
        await asyncio.sleep(0.2)
        await one.stop()
        await asyncio.gather(*waiting, return_exceptions=True)
        return count

    assert asyncio.run(sent(pace())) == 20
    assert asyncio.run(sent(pace(requestsPerMinute=1))) == 1
    assert asyncio.run(sent(pace(tokensPerMinute=1000))) == 1
