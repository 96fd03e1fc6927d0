"""Asks the API server for what Jobs and pods do not say themselves of their waiting: queues and events."""

from __future__ import annotations

import logging
from dataclasses import replace

from medgr2_api.cycle import Cycle

from ..kube.client import EVENTS, ApiError, Client, Manifest
from ..plan.status_draft import attempt_of
from ..render.job import QUEUE_LABEL
from . import observe
from .kueue import Workloads
from .pvc_check import WorkspaceState
from .why_waiting import Surroundings, uids_with_events

_log = logging.getLogger(__name__)


class CauseReader:
    """Asks only while something waits."""

    def __init__(self, client: Client) -> None:
        self._client, self._workloads = client, Workloads(client)

    async def read(
        self,
        cycle: Cycle,
        workspace: WorkspaceState,
        jobs: list[Manifest],
        pods: list[Manifest],
        around: Surroundings,
    ) -> Surroundings:
        """What is known so far (`around`), with what queues and events say of a cycle's Jobs and pods."""
        namespace = cycle.metadata.namespace
        since = {attempt_of(stage): stage.pending_since for stage in cycle.status.stages if stage.pending_since}
        around = replace(around, since=since, claim_is_bound=workspace.bound)
        waiting = [entry for entry in observe.with_pods(jobs, pods) if observe.unfinished(entry[1])]
        queued = {job["metadata"]["uid"] for _, job, _ in waiting if _is_queued(job)}
        quota = await self._workloads.messages(namespace, queued) if queued else {}
        events = {uid: await self._events(namespace, uid) for uid in uids_with_events(waiting, around)}
        return replace(around, quota=quota, events=events)

    async def _events(self, namespace: str, uid: str) -> list[Manifest]:
        """The events of an object."""
        try:
            return await self._client.list(EVENTS, namespace, fields=f"involvedObject.uid={uid}")
        except ApiError as error:
            _log.warning("events cannot be read: %s", error)
            return []


def _is_queued(job: Manifest) -> bool:
    """Whether a queue holds a Job back."""
    return bool(job["spec"].get("suspend")) and QUEUE_LABEL in (job["metadata"].get("labels") or {})
