"""Leader election: one replica reconciles, the others stand by.

Who holds the Lease renews it; whoever finds it unchanged for its whole duration, by its own clock, takes it over. Every
request ends well before the deadline to renew, and who misses that deadline ends its process: two leaders at a time
would need a process that goes on after it.

`kubernetes.aio.leaderelection` is not used: its requests have no timeout, a broken connection ends it, it measures by
wall clock, and it never releases the Lease, so that each rollout would wait for the Lease to expire.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime

from .client import LEASES, ApiError, Client, ConflictError, Manifest, NotFoundError

_log = logging.getLogger(__name__)


class LeaseLostError(Exception):
    """The Lease could not be renewed in time, or somebody else holds it."""


class Lease:
    """One Lease, and this replica's identity."""

    def __init__(
        self,
        client: Client,
        namespace: str,
        name: str,
        identity: str,
        *,
        duration: float = 15.0,
        renew_deadline: float = 10.0,
        retry: float = 2.0,
    ) -> None:
        """
        Args:
            client: to the API server.
            namespace: where the Lease lies.
            name: its name.
            identity: of this replica; unique among the replicas.
            duration: seconds after which others take an unrenewed Lease over.
            renew_deadline: seconds after which `hold` gives up; below `duration`.
            retry: seconds between tries.
        """
        self.client, self.namespace, self.name, self.identity = client, namespace, name, identity
        self.duration, self.renew_deadline, self.retry = duration, renew_deadline, retry
        self._seen = ""  # resourceVersion of the Lease as last seen
        self._seen_at = 0.0

    async def acquire(self) -> None:
        """Waits until this replica holds the Lease."""
        while not await self._try():
            await asyncio.sleep(self.retry)
        _log.info("leading as %s", self.identity)

    async def hold(self) -> None:
        """Renews it for ever.

        Raises:
            LeaseLostError: it was not renewed in time.
        """
        renewed = time.monotonic()
        while True:
            await asyncio.sleep(self.retry)
            left = renewed + self.renew_deadline - time.monotonic()
            if left > 0:
                try:
                    held = await asyncio.wait_for(self._try(), left)
                except TimeoutError:
                    held = False
                if held:
                    renewed = time.monotonic()
                    continue
            if time.monotonic() - renewed >= self.renew_deadline or self._taken:
                raise LeaseLostError(f"Lease {self.namespace}/{self.name} is lost")

    async def release(self) -> None:
        """Releases it, so that a standby need not wait for it to expire."""
        try:
            lease = await self.client.get(LEASES, self.name, self.namespace)
            if lease["spec"].get("holderIdentity") == self.identity:
                lease["spec"].update(holderIdentity="", leaseDurationSeconds=1, renewTime=_stamp())
                await self.client.replace(LEASES, lease)
        except ApiError as error:
            _log.warning("the Lease was not released: %s", error)

    async def _try(self) -> bool:
        """One try to acquire or renew it; False: another replica holds it, or the API server does not answer."""
        self._taken = False
        try:
            lease = await self.client.get(LEASES, self.name, self.namespace)
        except NotFoundError:
            return await self._write(self._renewed({}), create=True)
        except ApiError as error:
            _log.warning("the Lease cannot be read: %s", error)
            return False
        version = lease["metadata"]["resourceVersion"]
        if version != self._seen:
            self._seen, self._seen_at = version, time.monotonic()
        spec = lease.get("spec", {})
        holder = spec.get("holderIdentity") or ""
        if holder and holder != self.identity:
            self._taken = True
            # by the local clock since it was seen to change, never by the times written in it: clocks differ
            if time.monotonic() - self._seen_at < float(spec.get("leaseDurationSeconds") or self.duration):
                return False
        return await self._write(self._renewed(lease), create=False)

    _taken = False

    def _renewed(self, lease: Manifest) -> Manifest:
        before = lease.get("spec", {})
        still_holder = before.get("holderIdentity") == self.identity
        transitions = int(before.get("leaseTransitions") or 0)
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": lease.get("metadata") or {"name": self.name, "namespace": self.namespace},
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": int(self.duration),
                "acquireTime": before.get("acquireTime") if still_holder else _stamp(),
                "renewTime": _stamp(),
                "leaseTransitions": transitions if still_holder or not lease else transitions + 1,
            },
        }

    async def _write(self, lease: Manifest, *, create: bool) -> bool:
        try:
            written = await (self.client.create(LEASES, lease) if create else self.client.replace(LEASES, lease))
        except ConflictError:
            return False
        except ApiError as error:
            _log.warning("the Lease cannot be written: %s", error)
            return False
        self._seen, self._seen_at, self._taken = written["metadata"]["resourceVersion"], time.monotonic(), False
        return True


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
