"""The workspace's PersistentVolumeClaim: whether a cycle's stages can use it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from medgr2_api.cycle import Cycle

from ..kube.client import CLAIMS, ApiError, Client, NotFoundError
from ..render.pvc import claim, claim_name

#: Seconds for which a usable claim is taken to stay so: many cycles may share one, and each reconcile asks.
CACHE_SECONDS = 30.0


@dataclass(frozen=True)
class WorkspaceState:
    """State of the cycle's volume."""

    problem: str = ""
    """Why it cannot be used; empty: it can."""
    single_node: bool = False
    """Only the pods of one node can mount it at a time."""
    bound: bool = True
    """The claim has its volume; false where that comes with the first pod, or not at all."""


class VolumeCheck:
    """Checks the claims of all cycles; caches that one is usable."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._ready: dict[tuple[str, str], tuple[float, WorkspaceState]] = {}
        """By namespace and name, with the time until which it holds."""

    async def of(self, cycle: Cycle) -> WorkspaceState:
        """Whether the volume's claim is usable; one that a template describes is created."""
        key = cycle.metadata.namespace, claim_name(cycle)
        until, workspace = self._ready.get(key, (0.0, WorkspaceState()))
        if time.monotonic() < until:
            return workspace
        workspace = await self._read(cycle, *key)
        self._ready.pop(key, None)
        if not workspace.problem and workspace.bound:
            self._ready[key] = time.monotonic() + CACHE_SECONDS, workspace
        return workspace

    async def _read(self, cycle: Cycle, namespace: str, name: str) -> WorkspaceState:
        try:
            pvc = await self._client.get(CLAIMS, name, namespace)
        except NotFoundError:
            template = claim(cycle)
            if template is None:
                return WorkspaceState(
                    f"PersistentVolumeClaim {name} does not exist in namespace {namespace}; create it"
                )
            if cycle.metadata.deletion_timestamp is not None:
                return WorkspaceState(f"PersistentVolumeClaim {name} is gone")
            try:
                pvc = await self._client.create(CLAIMS, template)
            except ApiError as error:
                if error.passes:
                    raise
                return WorkspaceState(f"PersistentVolumeClaim {name} was refused: {error.server_message}")
        if "deletionTimestamp" in pvc["metadata"]:
            return WorkspaceState(f"PersistentVolumeClaim {name} is being deleted")
        phase = pvc.get("status", {}).get("phase")
        if phase == "Lost":
            return WorkspaceState(f"PersistentVolumeClaim {name} has lost its volume")
        modes = pvc.get("spec", {}).get("accessModes") or ()
        return WorkspaceState(single_node="ReadWriteMany" not in modes, bound=phase == "Bound")
