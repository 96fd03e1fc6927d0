"""The volume's claim: whether a cycle's stages can use it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from medgr2_api.cycle import Cycle

from ..kube.client import CLAIMS, Client, NotFoundError
from ..render.pvc import claim, claim_name

#: Seconds for which a claim that can be used is taken to stay so: many cycles may share one, and each look asks.
TRUST = 30.0


@dataclass(frozen=True)
class Workspace:
    """What is known of the cycle's volume."""

    problem: str = ""
    """Why it cannot be used; empty: it can."""
    single_node: bool = False
    """Only the pods of one node can mount it at a time."""


class Claims:
    """Answers for all cycles; remembers good answers for a while."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._good: dict[tuple[str, str], tuple[float, Workspace]] = {}
        """By namespace and name, with the time until which it holds."""

    async def of(self, cycle: Cycle) -> Workspace:
        """Whether the volume's claim is there; one that a template describes is made."""
        key = cycle.metadata.namespace, claim_name(cycle)
        until, workspace = self._good.get(key, (0.0, Workspace()))
        if time.monotonic() < until:
            return workspace
        workspace = await self._ask(cycle, *key)
        self._good.pop(key, None)
        if not workspace.problem:
            self._good[key] = time.monotonic() + TRUST, workspace
        return workspace

    async def _ask(self, cycle: Cycle, namespace: str, name: str) -> Workspace:
        try:
            found = await self._client.get(CLAIMS, name, namespace)
        except NotFoundError:
            wanted = claim(cycle)
            if wanted is None:
                return Workspace(f"PersistentVolumeClaim {name} does not exist in namespace {namespace}; create it")
            if cycle.metadata.deletion_timestamp is not None:
                return Workspace(f"PersistentVolumeClaim {name} is gone")
            found = await self._client.create(CLAIMS, wanted)
        if "deletionTimestamp" in found["metadata"]:
            return Workspace(f"PersistentVolumeClaim {name} is being deleted")
        if found.get("status", {}).get("phase") == "Lost":
            return Workspace(f"PersistentVolumeClaim {name} has lost its volume")
        modes = found.get("spec", {}).get("accessModes") or ()
        return Workspace(single_node="ReadWriteMany" not in modes)
