"""kopf, used for what it is best at: watching. Every event only puts a key into the queue."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

import kopf

from ..kube.client import CYCLES, JOBS
from ..render import labels
from .event_predicates import News
from .keys import CycleKey
from .workqueue import WorkQueue


def registry(queue: WorkQueue[CycleKey]) -> kopf.OperatorRegistry:
    """Handlers that feed the queue; registered nowhere else, so that tests can have several."""
    made, news = kopf.OperatorRegistry(), News()

    @kopf.on.event(CYCLES.group, CYCLES.version, CYCLES.plural, registry=made)
    async def on_cycle(type: str | None, body: Mapping[str, Any], **_: Any) -> None:
        look(body, body["metadata"]["name"], news.of_cycle(type, body))

    @kopf.on.event(JOBS.group, JOBS.version, JOBS.plural, registry=made)
    async def on_job(type: str | None, body: Mapping[str, Any], **_: Any) -> None:
        if cycle := (body["metadata"].get("labels") or {}).get(labels.CYCLE):
            look(body, cycle, news.of_job(type, body))

    def look(body: Mapping[str, Any], cycle: str, wait: float | None) -> None:
        key = CycleKey(body["metadata"]["namespace"], cycle)
        if wait is not None and wait > 0:
            queue.add_after(key, wait)
        elif wait is not None:
            queue.add(key)

    @kopf.on.login(registry=made)
    async def login(**options: Any) -> kopf.ConnectionInfo | None:
        outside = "KUBECONFIG" in os.environ
        return kopf.login_with_kubeconfig(**options) if outside else kopf.login_with_service_account(**options)

    @kopf.on.startup(registry=made)
    async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False  # our own recorder writes events
        # by the API server: other people's Jobs never reach us
        settings.watching.label_selectors[JOBS.group, JOBS.plural] = f"{labels.MANAGED_BY}={labels.MANAGER}"
        settings.scanning.disabled = True  # the resources are known; no rights on CRDs and namespaces are needed
        # what is listed and watched stays in memory until the worker of its object has ended
        settings.watching.chunk_size = 50
        settings.queueing.idle_timeout = 0.2
        settings.watching.server_timeout = 300
        settings.watching.client_timeout = 310
        settings.watching.connect_timeout = 30
        settings.networking.request_timeout = 30

    return made


async def watch(queue: WorkQueue[CycleKey], namespaces: tuple[str, ...], stop: asyncio.Event) -> None:
    """Watches cycles and our Jobs until `stop`; all namespaces when none is named."""
    await kopf.operator(
        registry=registry(queue),
        standalone=True,  # the Lease is ours already
        clusterwide=not namespaces,
        namespaces=namespaces,
        stop_flag=stop,
    )
