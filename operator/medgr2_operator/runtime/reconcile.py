"""One look at one cycle: read it, ask the planner, carry the plan out. Holds no state that matters: whatever is lost
with the process is read again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from medgr2_api.cycle import Cycle
from medgr2_api.problems import dotted, explain
from medgr2_api.status import AttemptState, Condition

from ..kube.client import (
    CLAIMS,
    CYCLES,
    JOBS,
    PODS,
    SERVICES,
    WORKLOADS,
    ApiError,
    Client,
    ConflictError,
    Manifest,
    NotFoundError,
    Resource,
)
from ..kube.events import Recorder
from ..plan.machine import plan
from ..plan.model import Event, JobCreate, JobState, Observed, ObservedJob, Plan
from ..render import labels
from ..render.claim import claim, claim_name
from ..render.errors import RenderError
from ..render.job import QUEUE_LABEL, job
from ..render.settings import RenderSettings
from . import observe
from .keys import CycleKey
from .progress import Poller

_log = logging.getLogger(__name__)

#: Seconds until a cycle that waits to be scheduled is looked at again: pods and queues tell their causes without an
#: event that we watch.
PENDING_LOOK = 20.0
#: Seconds between looks at a running stage that nothing has happened to.
RUNNING_LOOK = 60.0


@dataclass(frozen=True)
class Workspace:
    """What is known of the cycle's volume."""

    problem: str = ""
    """Why it cannot be used; empty: it can."""
    single_node: bool = False
    """Only the pods of one node can mount it at a time."""


class Listener:
    """What metrics are told."""

    def on_plan(self, key: CycleKey, cycle: Cycle, made: Plan) -> None:
        """After a plan was carried out; `cycle` is as it was before."""

    def on_gone(self, key: CycleKey) -> None:
        """There is no such cycle any more."""


class Reconciler:
    """`await reconciler(key)` brings one cycle one step on; returns the seconds until it wants to look again."""

    def __init__(
        self,
        client: Client,
        settings: RenderSettings,
        recorder: Recorder,
        poller: Poller,
        listener: Listener | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._client, self._settings, self._recorder = client, settings, recorder
        self._poller, self._listener = poller, listener or Listener()
        self._now = now
        self._strangers: dict[str, ObservedJob] = {}
        """Jobs of others that have a name of ours, by namespace/name."""

    async def __call__(self, key: CycleKey) -> float | None:
        try:
            manifest = await self._client.get(CYCLES, key.name, key.namespace)
        except NotFoundError:
            self._listener.on_gone(key)
            self._poller.watch(key, ())
            return None
        try:
            cycle = Cycle.model_validate(manifest, by_alias=True, by_name=False)
        except ValidationError as error:
            found = explain(error, Cycle, lambda location: None)
            await self._refuse(manifest, "; ".join(f"{dotted(place)}: {message}" for place, message in found))
            return None
        if (left := self._time_to_live(cycle)) is not None and left <= 0:
            await self._client.delete(CYCLES, key.name, key.namespace, uid=cycle.metadata.uid)
            return None

        # pods after Jobs, both after the cycle: what the planner takes for vanished is not there
        jobs = await self._list(JOBS, cycle)
        pods = await self._list(PODS, cycle)
        workspace = await self._workspace(cycle)
        made = plan(cycle, await self._observe(key, cycle, workspace, jobs, pods), self._now())
        try:
            objects = [
                thing for create in made.creates for thing in job(cycle, create, self._settings, workspace.single_node)
            ]
        except RenderError as error:
            await self._refuse(manifest, str(error))
            return None
        try:
            await self._carry_out(cycle, manifest, made, objects)
        except ConflictError:
            return 0.0  # the cycle was changed since it was read: look again
        for pod in observe.overdue_pods(pods, self._now()):
            # without this the stage waits for a node that may never come back; the fence guards the volume if it does
            _log.warning("deleting pod %s of a lost node", pod["metadata"]["name"])
            await self._client.delete(
                PODS, pod["metadata"]["name"], key.namespace, uid=pod["metadata"]["uid"], grace_seconds=0
            )
        self._listener.on_plan(key, cycle, made)
        self._poller.watch(key, observe.running_pods(pods))
        return _soonest(made.requeue_after, left, _next_look(made))

    # -- seeing --------------------------------------------------------------------------------------------------------

    async def _list(self, resource: Resource, cycle: Cycle) -> list[Manifest]:
        selector = f"{labels.CYCLE_UID}={cycle.metadata.uid}"
        return await self._client.list(resource, cycle.metadata.namespace, labels=selector)

    async def _observe(
        self, key: CycleKey, cycle: Cycle, workspace: Workspace, jobs: list[Manifest], pods: list[Manifest]
    ) -> Observed:
        quota = await self._quota(jobs, key.namespace)
        told = self._poller.told(key)
        seen = [
            replace(found, progress=told[found.key]) if found.key in told else found
            for found in observe.jobs(jobs, pods, cycle.metadata.uid, quota)
        ]
        strangers = await self._strangers_of(cycle)
        return Observed((*seen, *strangers), tuple(observe.live_pods(pods)), not workspace.problem, workspace.problem)

    async def _workspace(self, cycle: Cycle) -> Workspace:
        """Whether the volume's claim is there; one that a template describes is made."""
        name, namespace = claim_name(cycle), cycle.metadata.namespace
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

    async def _quota(self, jobs: list[Manifest], namespace: str) -> dict[str, str]:
        """By uid of a Job, what Kueue says of its place in the queue; asked only while something waits there."""
        waiting = {
            found["metadata"]["uid"]
            for found in jobs
            if found["spec"].get("suspend") and QUEUE_LABEL in (found["metadata"].get("labels") or {})
        }
        if not waiting:
            return {}
        try:
            workloads = await self._client.list(WORKLOADS, namespace)
        except ApiError as error:
            _log.warning("Kueue's workloads cannot be read: %s", error)
            return {}
        told = {}
        for workload in workloads:
            for condition in workload.get("status", {}).get("conditions") or ():
                if condition["type"] == "QuotaReserved" and condition["status"] == "False":
                    told[observe.owner_uid(workload)] = condition.get("message", "")
        return {uid: message for uid, message in told.items() if uid in waiting}

    async def _strangers_of(self, cycle: Cycle) -> list[ObservedJob]:
        """Jobs of others under names of ours that are still there."""
        found = []
        for name, seen in list(self._strangers.items()):
            namespace, _, job_name = name.partition("/")
            if namespace == cycle.metadata.namespace and job_name in {s.job_name for s in cycle.status.stages}:
                try:
                    await self._client.get(JOBS, job_name, namespace)
                    found.append(seen)
                except NotFoundError:
                    del self._strangers[name]
        return found

    # -- doing ---------------------------------------------------------------------------------------------------------

    async def _carry_out(self, cycle: Cycle, manifest: Manifest, made: Plan, objects: list[Manifest]) -> None:
        """Status, deletes, creates, events: a crash between any two leaves what the next look completes."""
        namespace = cycle.metadata.namespace
        if made.status != cycle.status or made.creates or made.deletes:
            # refused with 409 when the cycle was changed since it was read
            manifest = await self._client.replace_status(CYCLES, {**manifest, "status": made.status.dump()})
        for delete in made.deletes:
            _log.info("deleting Job %s: %s", delete.name, delete.reason)
            await self._client.delete(JOBS, delete.name, namespace, uid=delete.uid)
        keys = {create.name: create for create in made.creates}
        for thing in objects:
            await self._create(cycle, thing, keys.get(thing["metadata"]["name"]))
        for event in made.events:
            await self._recorder.record(manifest, event)

    async def _create(self, cycle: Cycle, thing: Manifest, create: JobCreate | None) -> None:
        """Creates a Job or a Service. One of ours that is there already came before a crash; a stranger's stays."""
        resource = SERVICES if thing["kind"] == SERVICES.kind else JOBS
        name, namespace = thing["metadata"]["name"], cycle.metadata.namespace
        try:
            await self._client.create(resource, thing)
            _log.info("created %s %s", thing["kind"], name)
        except ConflictError:
            standing = await self._client.get(resource, name, namespace)
            if observe.owner_uid(standing) == cycle.metadata.uid:
                return
            if create is None:
                raise ApiError(
                    f"{thing['kind']} {name} exists and is not ours; delete it, or rename the cycle"
                ) from None
            self._strangers[f"{namespace}/{name}"] = ObservedJob(
                create.key, name, standing["metadata"]["uid"], JobState.RUNNING, owned=False
            )
            await self._recorder.record(
                await self._client.get(CYCLES, cycle.metadata.name, namespace),
                Event("Warning", "NameConflict", f"Job {name} exists and is not ours; it is left alone"),
            )

    async def _refuse(self, manifest: Manifest, message: str) -> None:
        """Tells why a cycle cannot be run as it is written. What runs goes on; a new spec wakes us."""
        status = dict(manifest.get("status") or {})
        told = Condition(
            type="Progressing",
            status="False",
            reason="InvalidSpec",
            message=message[:1024],
            observed_generation=manifest["metadata"].get("generation", 0),
            last_transition_time=self._now(),
        ).dump()
        standing = {found["type"]: found for found in status.get("conditions") or ()}
        before = standing.get("Progressing", {})
        if {**before, "lastTransitionTime": ""} == {**told, "lastTransitionTime": ""}:
            return
        if before.get("status") == "False":
            told["lastTransitionTime"] = before.get("lastTransitionTime", told["lastTransitionTime"])
        status["conditions"] = [*({**standing, "Progressing": told}).values()]
        written = await self._client.replace_status(CYCLES, {**manifest, "status": status})
        await self._recorder.record(written, Event("Warning", "InvalidSpec", message))

    def _time_to_live(self, cycle: Cycle) -> float | None:
        """Seconds until a finished cycle is deleted; None: never, or not finished."""
        ttl, ended = cycle.spec.ttl_seconds_after_finished, cycle.status.completion_time
        if ttl is None or ended is None or cycle.metadata.deletion_timestamp is not None:
            return None
        return (ended + timedelta(seconds=ttl) - self._now()).total_seconds()


def _next_look(made: Plan) -> float | None:
    states = {stage.state for stage in made.status.stages if stage.attempt}
    if AttemptState.PENDING in states:
        return PENDING_LOOK
    return RUNNING_LOOK if states & {AttemptState.RUNNING, AttemptState.TERMINATING} else None


def _soonest(*waits: float | None) -> float | None:
    return min((wait for wait in waits if wait is not None), default=None)
