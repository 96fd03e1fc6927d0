"""What Kueue says of Jobs that it holds back."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator

from ..kube.client import ApiError, Client, Manifest, NotFoundError, Resource
from .pod_state import owner_uid

_log = logging.getLogger(__name__)

#: Newest first: 0.20 does not serve v1beta1 any more, and before 0.15 there is no v1beta2. What is read is in both.
_VERSIONS = ("v1beta2", "v1beta1")


class Workloads:
    """Reads Kueue's Workloads in the version that the cluster serves."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._served = _VERSIONS[0]

    async def messages(self, namespace: str, jobs: Collection[str]) -> dict[str, str]:
        """By uid of a Job, why it is not admitted.

        Args:
            namespace: of the Jobs.
            jobs: uids of those that wait.
        """
        try:
            workloads = await self._list(namespace)
        except ApiError as error:
            _log.warning("Kueue's workloads cannot be read: %s", error)
            return {}
        messages = {owner_uid(workload): why_not_admitted(workload) for workload in workloads}
        return {uid: message for uid, message in messages.items() if uid in jobs and message}

    async def _list(self, namespace: str) -> list[Manifest]:
        for version in sorted(_VERSIONS, key=lambda version: version != self._served):
            try:
                workloads = await self._client.list(_resource(version), namespace)
            except NotFoundError:
                continue
            self._served = version
            return workloads
        return []  # no Kueue here


def why_not_admitted(workload: Manifest) -> str:
    """Why a Workload is not admitted; empty: it is, or nobody has looked at it."""
    status = workload.get("status") or {}
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    quota = conditions.get("QuotaReserved", {})
    if quota.get("status") == "False":
        return str(quota.get("message", ""))
    evicted = conditions.get("Evicted", {})
    if evicted.get("status") == "True":  # it loses its quota once its pods have ended; until then this alone says why
        return str(evicted.get("message", ""))
    return "; ".join(_pending_checks(status)) if quota else ""


def _pending_checks(status: Manifest) -> Iterator[str]:
    """It has its quota, and checks stand between: a node that is being provisioned."""
    for check in status.get("admissionChecks") or ():
        if check.get("state") != "Ready":
            yield f"admission check {check.get('name')} is {check.get('state')}: {check.get('message', '')}".rstrip(
                ": "
            )


def _resource(version: str) -> Resource:
    return Resource("kueue.x-k8s.io", version, "workloads", "Workload")
