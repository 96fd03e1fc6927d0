"""The operator's process: health endpoints, then the Lease, then watches, queue and workers.

Ends with 0 on SIGTERM, with 1 when the Lease is lost or something breaks: Kubernetes starts it again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress

import structlog
from prometheus_client import CollectorRegistry

from medgr2_api.guarded_streams import guarded

from ..kube.client import CYCLES, ApiError, Client, connect
from ..kube.events import EventRecorder
from ..kube.leader_election import Lease, LeaseLostError
from . import health, logging_setup, watches
from .bounded_work import Setbacks
from .metrics import Metrics
from .progress_poller import ProgressPoller
from .reconciler import Reconciler
from .settings import Settings, SettingsError, from_environment
from .workqueue import CycleKey, WorkQueue

_log = logging.getLogger(__name__)


async def operate(settings: Settings, stop: asyncio.Event, on_port: Callable[[int], None] = lambda port: None) -> None:
    """Runs until `stop`.

    Args:
        settings: the configuration.
        stop: ends it gracefully: no new work, the Lease released.
        on_port: is called with the port of the health endpoints.

    Raises:
        LeaseLostError: another replica may be leading.
    """
    registry, state = CollectorRegistry(), health.Health()
    queue: WorkQueue[CycleKey] = WorkQueue()
    metrics = Metrics(registry, queue, settings)
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(health.serve(state, registry, settings.port))
        on_port(port())
        client = await stack.enter_async_context(connect(settings.kubeconfig, on_request=metrics.controller.on_request))
        await _wait_for_api(client, settings, state, stop)
        if stop.is_set():
            return
        lease = Lease(client, settings.namespace, settings.lease_name, settings.identity)
        if settings.leader_election:
            if not await _until(stop, lease.acquire()):
                return
            stack.push_async_callback(lease.release)
        metrics.controller.leader.set(1)
        render = settings.render()
        poller = ProgressPoller(queue, render.progress_port)
        setbacks = Setbacks(settings.state_dir)
        reconcile = Reconciler(client, render, EventRecorder(client), poller, metrics, client.clock.now, setbacks)
        await _lead(settings, stop, queue, reconcile, poller, client, lease, metrics)


async def _lead(
    settings: Settings,
    stop: asyncio.Event,
    queue: WorkQueue[CycleKey],
    reconcile: Reconciler,
    poller: ProgressPoller,
    client: Client,
    lease: Lease,
    metrics: Metrics,
) -> None:
    """What only the leader runs; ends when any part of it does."""

    async def work(key: CycleKey) -> float | None:
        with structlog.contextvars.bound_contextvars(namespace=key.namespace, cycle=key.name):
            return await reconcile(key)

    watching = asyncio.Event()
    parts = {
        asyncio.create_task(stop.wait(), name="stop"),
        asyncio.create_task(watches.watch(queue, settings.watched, watching), name="watch"),
        asyncio.create_task(queue.run(work, settings.workers), name="queue"),
        asyncio.create_task(_resync(client, queue, settings, metrics.resynced), name="resync"),
        asyncio.create_task(poller.run(), name="progress"),
    }
    if settings.leader_election:
        parts.add(asyncio.create_task(lease.hold(), name="lease"))
    done, rest = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
    watching.set()
    for task in rest:
        if task.get_name() != "watch":
            task.cancel()
    await asyncio.wait(rest, timeout=10)
    ended = {task.get_name(): task for task in done}
    if "watch" in ended:  # kopf handles SIGTERM, too; when it ends it also cancels our tasks
        ended["watch"].result()
    elif "stop" not in ended:
        for name, task in ended.items():
            task.result()  # raises what ended it
            raise RuntimeError(f"{name} ended by itself")


async def _resync(client: Client, queue: WorkQueue[CycleKey], settings: Settings, done: Callable[[], None]) -> None:
    """Reconciles every cycle now and then: a watch may fail silently."""
    while True:
        complete = True
        for namespace in settings.watched or (None,):
            try:
                for cycle in await client.list(CYCLES, namespace, metadata_only=True):
                    queue.add(CycleKey(cycle["metadata"]["namespace"], cycle["metadata"]["name"]))
            except ApiError as error:
                complete = False
                _log.warning("resync: %s", error)
        if complete:
            done()
        await asyncio.sleep(settings.resync_seconds)


async def _wait_for_api(client: Client, settings: Settings, state: health.Health, stop: asyncio.Event) -> None:
    """Waits until the API server serves our kind of object."""
    while not stop.is_set():
        try:
            for namespace in settings.watched or (None,):
                await client.list(CYCLES, namespace, metadata_only=True)
            state.ready = True
            return
        except ApiError as error:
            _log.warning("waiting for the API server: %s", error)
            await _until(stop, asyncio.sleep(2))


async def _until(stop: asyncio.Event, work: object) -> bool:
    """Waits for `work`, or for `stop`; False: it was stopped first."""
    tasks = {asyncio.ensure_future(work), asyncio.create_task(stop.wait())}  # type: ignore[call-overload]
    done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    for task in done:
        task.result()
    return not stop.is_set()


def read_deep_objects() -> None:
    """Lets Python read JSON as deep as the API server takes it, 10,000 levels: where it sees an endless recursion, one
    such object ends the watch of all. The models refuse it afterwards."""
    sys.setrecursionlimit(60_000)


def main() -> int:
    """Entry point of the operator's container."""
    try:
        settings = from_environment()
    except SettingsError as error:
        print(f"medgr2-operator: {error}", file=sys.stderr)
        return 78
    logging_setup.configure(settings.log_level)
    read_deep_objects()
    if settings.kubeconfig is not None:
        os.environ["KUBECONFIG"] = str(settings.kubeconfig)  # where kopf looks

    async def run() -> int:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        try:
            await operate(settings, stop, lambda port: _log.info("health endpoints on port %d", port))
        except LeaseLostError as error:
            _log.error("%s; ending", error)
            return 1
        return 0

    return asyncio.run(run())


if __name__ == "__main__":
    with guarded():
        code = main()
    sys.exit(code)
