"""Kueue's Workloads are read in whichever version the cluster serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from medgr2_operator.kube.client import connect
from medgr2_operator.runtime.kueue import Workloads, why_not_admitted


def workload(owner: str, **status: Any) -> dict[str, Any]:
    metadata = {"name": f"job-{owner}", "ownerReferences": [{"uid": owner, "controller": True}]}
    return {"metadata": metadata, "status": status}


def condition(kind: str, status: str, message: str = "") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": "Pending", "message": message}


FULL = workload("a", conditions=[condition("QuotaReserved", "False", "insufficient unused quota")])
OTHERS = workload("b", conditions=[condition("QuotaReserved", "False", "another cycle's")])


class ApiServer:
    """Serves Workloads in some versions; anything else is not found."""

    def __init__(self, *versions: str) -> None:
        self.versions, self.asked = versions, list[str]()

    async def answer(self, request: web.Request) -> web.Response:
        version = request.match_info["version"]
        self.asked.append(version)
        if version not in self.versions:
            return web.json_response({"message": "the server could not find the requested resource"}, status=404)
        return web.json_response({"items": [FULL, OTHERS], "metadata": {}})

    @asynccontextmanager
    async def serve(self, folder: Path) -> AsyncIterator[Workloads]:
        app = web.Application()
        app.router.add_get("/apis/kueue.x-k8s.io/{version}/namespaces/ml/workloads", self.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        kubeconfig = {
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {}}],
            "current-context": "x",
        }
        (folder / "config").write_text(yaml.safe_dump(kubeconfig))
        async with connect(folder / "config") as client:
            yield Workloads(client)
        await runner.cleanup()


@pytest.mark.parametrize(
    ("served", "asked"),
    [
        (("v1beta2",), ["v1beta2", "v1beta2"]),
        (("v1beta2", "v1beta1"), ["v1beta2", "v1beta2"]),
        (("v1beta1",), ["v1beta2", "v1beta1", "v1beta1"]),
    ],
)
def test_the_newest_version_that_is_served(served: tuple[str, ...], asked: list[str], tmp_path: Path) -> None:
    server = ApiServer(*served)

    async def ask() -> None:
        async with server.serve(tmp_path) as workloads:
            for _ in range(2):
                assert await workloads.messages("ml", {"a"}) == {"a": "insufficient unused quota"}

    asyncio.run(ask())
    assert server.asked == asked, "the version is found out once"


def test_an_upgrade_of_kueue_is_followed(tmp_path: Path) -> None:
    server = ApiServer("v1beta1")

    async def ask() -> None:
        async with server.serve(tmp_path) as workloads:
            assert await workloads.messages("ml", {"a"})
            server.versions = ("v1beta2",)
            assert await workloads.messages("ml", {"a"})

    asyncio.run(ask())
    assert server.asked == ["v1beta2", "v1beta1", "v1beta1", "v1beta2"]


def test_without_kueue_nothing_is_known(tmp_path: Path) -> None:
    async def ask() -> None:
        async with ApiServer().serve(tmp_path) as workloads:
            assert await workloads.messages("ml", {"a"}) == {}

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("status", "why"),
    [
        ({}, ""),
        ({"conditions": [condition("QuotaReserved", "False", "no quota")]}, "no quota"),
        ({"conditions": [condition("QuotaReserved", "True"), condition("Admitted", "True")]}, ""),
        (
            {"conditions": [condition("QuotaReserved", "True"), condition("Evicted", "True", "is stopped")]},
            "is stopped",
        ),
        ({"conditions": [condition("QuotaReserved", "False", "no quota"), condition("Evicted", "True")]}, "no quota"),
        ({"conditions": [condition("QuotaReserved", "True"), condition("Evicted", "False", "Previously")]}, ""),
        (
            {
                "conditions": [condition("QuotaReserved", "True")],
                "admissionChecks": [
                    {"name": "nodes", "state": "Pending", "message": "being provisioned"},
                    {"name": "budget", "state": "Ready"},
                ],
            },
            "admission check nodes is Pending: being provisioned",
        ),
    ],
)
def test_why_a_workload_is_not_admitted(status: dict[str, Any], why: str) -> None:
    assert why_not_admitted({"metadata": {}, "status": status}) == why
