"""`medgr2 logs` when it is interrupted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from medgr2_operator.cli import logs
from medgr2_operator.cli.connection import Cluster
from medgr2_operator.kube.streams import BrokenStreamError


def test_a_cancellation_that_looks_like_a_broken_connection_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    connections = 0

    async def log(*_: Any, **__: Any) -> AsyncIterator[bytes]:
        nonlocal connections
        connections += 1
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise BrokenStreamError("the log broke off") from None
        yield b""

    async def interrupted() -> None:
        printer = logs._Printer(Cluster(None, "lab"), {"metadata": {"name": "pod"}}, b"")  # type: ignore[arg-type]
        task = asyncio.create_task(printer.run(follow=True))
        await asyncio.sleep(0.05)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=5)
        assert done, "it goes on"
        assert task.cancelled()

    monkeypatch.setattr(logs, "log", log)
    asyncio.run(interrupted())
    assert connections == 1
