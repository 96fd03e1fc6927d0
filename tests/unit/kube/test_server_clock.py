"""Only one clock counts, and it only goes forward."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio import client as kubernetes_client

from medgr2_operator.kube import server_clock
from medgr2_operator.kube.client import CYCLES, Client
from medgr2_operator.kube.server_clock import ServerClock

SERVER = "Mon, 05 Jan 2026 12:00:00 GMT"
THEN = datetime(2026, 1, 5, 12, tzinfo=UTC)


def test_it_is_the_servers_time_and_what_has_passed_since() -> None:
    passed = [100.0]
    clock = ServerClock(lambda: passed[0])
    clock.answered(SERVER, 100.0)
    passed[0] += 90
    assert clock.now() == THEN + timedelta(seconds=90)


def test_no_later_answer_moves_it() -> None:
    clock = ServerClock(lambda: 0.0)
    for date in (SERVER, "Mon, 05 Jan 2026 18:00:00 GMT", "Sun, 04 Jan 2026 12:00:00 GMT"):
        clock.answered(date, 0.0)
    assert clock.now() == THEN, "another replica of the API server, or its clock was set: no deadline may notice"


@pytest.mark.parametrize(("phase", "slow"), [(0.96, 0.0), (0.1, 2.5)])
def test_what_the_header_cuts_off_is_made_up_by_later_answers(phase: float, slow: float) -> None:
    """The first answer is begun late in its second, or comes late; those after it come at any moment of a second."""
    passed = [50.0]
    clock = ServerClock(lambda: passed[0])

    def answer(begun: float, took: float) -> None:
        """The server begins an answer so many seconds after THEN, and it takes so long to come."""
        passed[0] = 50.0 + begun
        asked, date = passed[0], THEN + timedelta(seconds=int(begun))
        passed[0] += took
        clock.answered(date.strftime("%a, %d %b %Y %H:%M:%S GMT"), asked)

    def behind() -> float:
        return (THEN + timedelta(seconds=passed[0] - 50.0) - clock.now()).total_seconds()

    answer(phase, slow)
    assert behind() == pytest.approx(phase + slow)
    told = []
    for number in range(1, 40):
        before = clock.now()
        answer(number + (0.37 * number) % 1, 0.004)
        assert clock.now() >= before, "it never goes back"
        told.append(behind())
    assert told == sorted(told, reverse=True)
    assert 0 <= told[-1] < 0.05


@pytest.mark.parametrize("date", [None, "", "yesterday", "Mon, 99 Jan 2026 12:00:00 GMT"])
def test_a_strange_answer_tells_nothing(date: str | None) -> None:
    clock = ServerClock(lambda: 0.0)
    clock.answered(date, 0.0)
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(seconds=5)
    clock.answered(SERVER, 0.0)
    assert clock.now() == THEN


@pytest.mark.parametrize("hours", [-7, 7])
def test_the_computers_clock_may_be_wrong_by_hours(monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    """A real client, a real server whose clock is right."""

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(hours=hours)

    async def ask() -> datetime:
        async def answer(request: web.Request) -> web.Response:
            return web.json_response({"items": []})

        app = web.Application()
        app.router.add_get("/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0]
        configuration = kubernetes_client.Configuration(host=f"http://{host}:{port}")
        async with kubernetes_client.ApiClient(configuration) as api:
            client = Client(api)
            await client.list(CYCLES, "ml")
            monkeypatch.setattr(server_clock, "datetime", Wrong)
            found = client.clock.now()
        await runner.cleanup()
        return found

    assert abs(asyncio.run(ask()) - datetime.now(UTC)) < timedelta(seconds=10)
