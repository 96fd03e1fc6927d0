"""Pods that live as long as a command."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .client import PODS, ApiError, Client, Manifest, NotFoundError

_POLL = 0.5  # seconds


class PodNotRunningError(ApiError):
    """The pod ended, or did not start in time; the message says what it waits for."""


@asynccontextmanager
async def running(client: Client, manifest: Manifest, seconds: float) -> AsyncIterator[str]:
    """Creates a pod, waits until it runs, and deletes it at the end, whatever happens.

    Args:
        client: to the API server.
        manifest: the pod, by a name that nobody else takes.
        seconds: to wait for it.

    Returns:
        its name.

    Raises:
        PodNotRunningError: it does not run in time.
        ApiError: it was refused.
    """
    name, namespace = manifest["metadata"]["name"], manifest["metadata"]["namespace"]
    try:
        pod = await client.create(PODS, manifest)
    except asyncio.CancelledError:  # before the answer; the pod may be there
        await client.delete(PODS, name, namespace)
        raise
    try:
        await _until_it_runs(client, name, namespace, seconds)
        yield name
    finally:
        await client.delete(PODS, name, namespace, uid=pod["metadata"]["uid"])


async def is_gone(client: Client, name: str, namespace: str) -> bool:
    """Whether a pod that ran is gone, going or at its end.

    Raises:
        ApiError: the API server does not say.
    """
    try:
        pod = await client.get(PODS, name, namespace)
    except NotFoundError:
        return True
    return "deletionTimestamp" in pod["metadata"] or pod.get("status", {}).get("phase") != "Running"


async def _until_it_runs(client: Client, name: str, namespace: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            pod = await client.get(PODS, name, namespace)
        except NotFoundError:
            raise PodNotRunningError(f"pod {name} was deleted by somebody else") from None
        phase = pod.get("status", {}).get("phase")
        if phase == "Running" and all(c.get("ready") for c in pod["status"].get("containerStatuses") or ()):
            return
        if phase in ("Succeeded", "Failed"):
            raise PodNotRunningError(f"pod {name} ended before it could be used: {why_waiting(pod) or phase}")
        if time.monotonic() > deadline:
            cause = why_waiting(pod) or "nothing says why"
            raise PodNotRunningError(f"pod {name} does not run after {seconds:.0f} s: {cause}")
        await asyncio.sleep(_POLL)


def why_waiting(pod: Manifest) -> str:
    """What a pod says about why it does not run; empty: nothing."""
    status = pod.get("status", {})
    causes = [f"{status.get('reason', '')} {status.get('message', '')}".strip()]
    for container in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        state = container.get("state") or {}
        details = state.get("waiting") or state.get("terminated") or {}
        causes.append(f"{details.get('reason', '')}: {details.get('message', '')}".strip(": "))
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            causes.append(f"{condition.get('reason', '')}: {condition.get('message', '')}".strip(": "))
    return "; ".join(text for text in causes if text)
