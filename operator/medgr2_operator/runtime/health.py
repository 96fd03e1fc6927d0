"""`/healthz`, `/readyz` and `/metrics`: served before the Lease is acquired, so that a standby is ready, too."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

#: Seconds the event loop may hang before the process counts as dead.
LOOP_LAG = 30.0


class Health:
    """What the probes ask."""

    def __init__(self) -> None:
        self.ready = False
        """The API server has answered once."""
        self._beat = time.monotonic()

    async def beat(self) -> None:
        """Notes for ever that the event loop runs."""
        while True:
            self._beat = time.monotonic()
            await asyncio.sleep(1)

    @property
    def alive(self) -> bool:
        """Whether the event loop ran lately. Not whether the API server answers: a restart would not help."""
        return time.monotonic() - self._beat < LOOP_LAG


@asynccontextmanager
async def serve(
    health: Health, registry: CollectorRegistry, port: int, host: str = "0.0.0.0"
) -> AsyncIterator[Callable[[], int]]:
    """Serves the three paths; yields a function that returns the port (for port 0)."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok") if health.alive else web.Response(status=500, text="the event loop hangs")

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text="ok") if health.ready else web.Response(status=503, text="no answer from the API yet")

    async def metrics(_: web.Request) -> web.Response:
        text = await asyncio.to_thread(generate_latest, registry)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    await site.start()
    beat = asyncio.create_task(health.beat())
    try:
        yield lambda: int(runner.addresses[0][1])
    finally:
        beat.cancel()
        await runner.cleanup()
