"""Pods that live as long as a command, when it is interrupted."""

from __future__ import annotations

import asyncio
import json

from aiohttp import web
from kubernetes.aio import client as kubernetes_client

from medgr2_operator.kube.client import Client
from medgr2_operator.kube.ephemeral_pod import running

POD = {"metadata": {"name": "loop-read-1a2b", "namespace": "lab"}}


def test_interrupted_before_the_server_has_answered_it_leaves_no_pod() -> None:
    pods: set[str] = set()
    stored = asyncio.Event()

    async def create(request: web.Request) -> web.Response:
        pods.add(json.loads(await request.text())["metadata"]["name"])
        stored.set()
        await asyncio.sleep(60)
        raise AssertionError("nobody waits for the answer")

    async def delete(request: web.Request) -> web.Response:
        pods.discard(request.match_info["name"])
        return web.json_response({})

    async def command(client: Client) -> None:
        async with running(client, POD, 60):
            raise AssertionError("it never runs")

    async def interrupted() -> None:
        app = web.Application()
        app.router.add_post("/api/v1/namespaces/lab/pods", create)
        app.router.add_delete("/api/v1/namespaces/lab/pods/{name}", delete)
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0]
        configuration = kubernetes_client.Configuration(host=f"http://{host}:{port}")
        configuration.retries = None
        async with kubernetes_client.ApiClient(configuration) as api:
            task = asyncio.create_task(command(Client(api)))
            await stored.wait()
            task.cancel()
            await asyncio.wait([task], timeout=10)
            assert task.cancelled()
        await runner.cleanup()

    asyncio.run(interrupted())
    assert pods == set()
