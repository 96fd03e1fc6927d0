"""Watches cycles and Jobs with kopf; every event only adds a key to the queue.

kopf stays for the watching alone: it lists anew after 410 Gone, reconnects with backoff and logs in again when a token
rotates, where `kubernetes.aio.watch` repeats a 410 with the stale version and raises on a broken connection. Its
handlers, timers and events are not used: they work on one object, and the planner needs a cycle with all its Jobs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

import kopf

from ..kube.client import CYCLES, JOBS
from ..render import labels
from .event_predicates import ChangeFilter
from .workqueue import CycleKey, WorkQueue


def registry(queue: WorkQueue[CycleKey]) -> kopf.OperatorRegistry:
    """Handlers that feed the queue; registered nowhere else, so that tests can have several."""
    handlers, changes = kopf.OperatorRegistry(), ChangeFilter()

    @kopf.on.event(CYCLES.group, CYCLES.version, CYCLES.plural, registry=handlers)
    async def on_cycle(type: str | None, body: Mapping[str, Any], **_: Any) -> None:
        enqueue(body, body["metadata"]["name"], changes.delay_for_cycle(type, body))

    @kopf.on.event(JOBS.group, JOBS.version, JOBS.plural, registry=handlers)
    async def on_job(type: str | None, body: Mapping[str, Any], **_: Any) -> None:
        if cycle := (body["metadata"].get("labels") or {}).get(labels.CYCLE):
            enqueue(body, cycle, changes.delay_for_job(type, body))

    def enqueue(body: Mapping[str, Any], cycle: str, wait: float | None) -> None:
        key = CycleKey(body["metadata"]["namespace"], cycle)
        if wait is not None and wait > 0:
            queue.add_after(key, wait)
        elif wait is not None:
            queue.add(key)

    @kopf.on.login(registry=handlers)
    async def login(**options: Any) -> kopf.ConnectionInfo | None:
        outside = "KUBECONFIG" in os.environ
        return kopf.login_with_kubeconfig(**options) if outside else kopf.login_with_service_account(**options)

    @kopf.on.startup(registry=handlers)
    async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False  # EventRecorder writes events
        # filtered by the API server: other people's Jobs are not sent
        settings.watching.label_selectors[JOBS.group, JOBS.plural] = f"{labels.MANAGED_BY}={labels.MANAGER}"
        settings.scanning.disabled = True  # the resources are known; no permissions on CRDs and namespaces are needed
        # what is listed and watched stays in memory until the worker of its object has ended
        settings.watching.chunk_size = 50
        settings.queueing.idle_timeout = 0.2
        settings.watching.server_timeout = 300
        settings.watching.client_timeout = 310
        settings.watching.connect_timeout = 30
        settings.networking.request_timeout = 30

    return handlers


async def watch(queue: WorkQueue[CycleKey], namespaces: tuple[str, ...], stop: asyncio.Event) -> None:
    """Watches cycles and their Jobs until `stop`; all namespaces when none is named."""
    await kopf.operator(
        registry=registry(queue),
        standalone=True,  # kube/leader_election.py elects the leader
        clusterwide=not namespaces,
        namespaces=namespaces,
        stop_flag=stop,
    )
