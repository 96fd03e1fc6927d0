"""One look at one cycle: read it, ask the planner, carry the plan out. Holds no state that matters: whatever is lost
with the process is read again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from medgr2_api.cycle import Cycle
from medgr2_api.status import AttemptState, Condition, CycleStatus
from medgr2_api.unsupported import unsupported
from medgr2_api.validation_errors import dotted, explain

from ..kube.client import (
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
from ..plan.planner import plan
from ..plan.scope import oldest_iteration
from ..plan.types import Event, JobCreate, JobState, Observed, ObservedJob, Plan
from ..render import labels
from ..render.job import QUEUE_LABEL, job
from ..render.render_context import RenderError, RenderSettings
from . import observe
from .keys import CycleKey
from .progress_poller import Poller
from .pvc_check import Claims, Workspace

_log = logging.getLogger(__name__)

#: Seconds until a cycle that waits to be scheduled is looked at again: pods and queues tell their causes without an
#: event that we watch.
PENDING_LOOK = 20.0
#: Seconds between looks at a stage that is asked to end: when its Job is gone, no event tells of its pods.
STOPPING_LOOK = 5.0
#: Seconds between looks at a running stage that nothing has happened to.
RUNNING_LOOK = 60.0


class Listener:
    """What metrics are told."""

    def on_stored(self, cycle: Cycle, made: Plan) -> None:
        """The status of a plan was written; `cycle` is as it was before. Once per transition, whatever fails later."""

    def on_done(self, cycle: Cycle, made: Plan) -> None:
        """All of a plan was carried out."""

    def on_refused(self, key: CycleKey) -> None:
        """A cycle cannot be run as it is written."""

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
        self._now, self._claims = now, Claims(client)
        self._strangers: dict[str, ObservedJob] = {}
        """Jobs of others that have a name of ours, by namespace/name."""
        self._uids: dict[CycleKey, dict[str, str]] = {}
        """Uids of Jobs that we created, by name, until a status tells them: that needs no write of its own."""

    async def __call__(self, key: CycleKey) -> float | None:
        try:
            manifest = await self._client.get(CYCLES, key.name, key.namespace)
        except NotFoundError:
            self._listener.on_gone(key)
            self._poller.watch(key, ())
            self._uids.pop(key, None)
            return None
        try:
            cycle = Cycle.model_validate(manifest, by_alias=True, by_name=False)
        except ValidationError as error:
            found = explain(error, Cycle, lambda location: None)
            await self._refuse(manifest, "; ".join(f"{dotted(place)}: {message}" for place, message in found))
            return None
        if (left := self._time_to_live(cycle, cycle.status)) is not None and left <= 0:
            await self._client.delete(CYCLES, key.name, key.namespace, uid=cycle.metadata.uid)
            return None
        if problems := unsupported(cycle.spec):
            await self._refuse(manifest, "; ".join(map(str, problems)))
            return None

        self._add_uids(key, cycle)
        # pods after Jobs, both after the cycle: what the planner takes for vanished is not there
        jobs = await self._list(JOBS, cycle)
        pods = await self._list(PODS, cycle)
        workspace = await self._claims.of(cycle)
        now = self._now()
        made = plan(cycle, await self._observe(key, cycle, workspace, jobs, pods, now), now)
        try:
            objects = [
                thing for create in made.creates for thing in job(cycle, create, self._settings, workspace.single_node)
            ]
        except RenderError as error:
            await self._refuse(manifest, str(error))
            return None
        try:
            ours = await self._carry_out(key, cycle, manifest, made, objects)
        except ConflictError:
            return 0.0  # the cycle was changed since it was read: look again
        for pod in observe.overdue_pods(pods, now):
            # without this the stage waits for a node that may never come back; the fence guards the volume if it does
            _log.warning("deleting pod %s of a lost node", pod["metadata"]["name"])
            await self._client.delete(
                PODS, pod["metadata"]["name"], key.namespace, uid=pod["metadata"]["uid"], grace_seconds=0
            )
        self._listener.on_done(cycle, made)
        self._poller.watch(key, observe.running_pods(pods))
        waits = PENDING_LOOK if workspace.problem else None  # nobody tells us of claims
        left = self._time_to_live(cycle, made.status)
        silence = observe.next_overdue(pods, now)
        return _soonest(made.requeue_after, left, waits, silence, _next_look(made), None if ours else 0.0)

    # -- seeing --------------------------------------------------------------------------------------------------------

    async def _list(self, resource: Resource, cycle: Cycle) -> list[Manifest]:
        selector = f"{labels.CYCLE_UID}={cycle.metadata.uid}"
        if past := ",".join(map(str, range(oldest_iteration(cycle)))):
            selector += f",{labels.ITERATION} notin ({past})"
        return await self._client.list(resource, cycle.metadata.namespace, labels=selector, keep=observe.needed)

    def _add_uids(self, key: CycleKey, cycle: Cycle) -> None:
        """Adds to the status that was read what we know besides: uids of Jobs that we created since."""
        known = self._uids.pop(key, {})
        for number, stage in enumerate(cycle.status.stages):
            if stage.job_name in known and not stage.job_uid:
                self._uids.setdefault(key, {})[stage.job_name] = known[stage.job_name]
                cycle.status.stages[number] = stage.model_copy(update={"job_uid": known[stage.job_name]})

    async def _observe(
        self,
        key: CycleKey,
        cycle: Cycle,
        workspace: Workspace,
        jobs: list[Manifest],
        pods: list[Manifest],
        now: datetime,
    ) -> Observed:
        quota = await self._quota(jobs, key.namespace)
        told = self._poller.told(key)
        seen = [
            replace(found, progress=told[found.key]) if found.key in told else found
            for found in observe.jobs(jobs, pods, cycle.metadata.uid, now, quota)
        ]
        strangers = await self._strangers_of(cycle)
        return Observed((*seen, *strangers), tuple(observe.live_pods(pods)), not workspace.problem, workspace.problem)

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

    async def _carry_out(
        self, key: CycleKey, cycle: Cycle, manifest: Manifest, made: Plan, objects: list[Manifest]
    ) -> bool:
        """Status, deletes, creates, events: a crash between any two leaves what the next look completes.

        Returns:
            False: a stranger has the name of one of our Jobs.
        """
        namespace = cycle.metadata.namespace
        if made.status != cycle.status or made.creates or made.deletes:
            # refused with 409 when the cycle was changed since it was read
            manifest = await self._client.replace_status(CYCLES, {**manifest, "status": made.status.dump()})
            self._listener.on_stored(cycle, made)
        for delete in made.deletes:
            _log.info("deleting Job %s: %s", delete.name, delete.reason)
            await self._client.delete(JOBS, delete.name, namespace, uid=delete.uid)
        keys = {create.name: create for create in made.creates}
        ours = True
        for thing in objects:
            name = thing["metadata"]["name"]
            if uid := await self._create(cycle, thing, keys.get(name)):
                self._uids.setdefault(key, {})[name] = uid
            else:
                ours = False
        await asyncio.gather(*(self._recorder.record(manifest, event) for event in made.events))
        return ours

    async def _create(self, cycle: Cycle, thing: Manifest, create: JobCreate | None) -> str:
        """Creates a Job or a Service. One of ours that is there already came before a crash; a stranger's stays.

        Returns:
            The uid of ours; empty: a stranger's is there.
        """
        resource = SERVICES if thing["kind"] == SERVICES.kind else JOBS
        name, namespace = thing["metadata"]["name"], cycle.metadata.namespace
        try:
            made = await self._client.create(resource, thing)
            _log.info("created %s %s", thing["kind"], name)
            return str(made["metadata"]["uid"])
        except ConflictError:
            standing = await self._client.get(resource, name, namespace)
            if observe.owner_uid(standing) == cycle.metadata.uid:
                return str(standing["metadata"]["uid"])
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
            return ""

    async def _refuse(self, manifest: Manifest, message: str) -> None:
        """Tells why a cycle cannot be run as it is written. What runs goes on; a new spec wakes us."""
        self._listener.on_refused(CycleKey(manifest["metadata"]["namespace"], manifest["metadata"]["name"]))
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

    def _time_to_live(self, cycle: Cycle, status: CycleStatus) -> float | None:
        """Seconds until a finished cycle is deleted; None: never, or not finished."""
        ttl, ended = cycle.spec.ttl_seconds_after_finished, status.completion_time
        if ttl is None or ended is None or cycle.metadata.deletion_timestamp is not None:
            return None
        return (ended + timedelta(seconds=ttl) - self._now()).total_seconds()


_LOOKS = {
    AttemptState.TERMINATING: STOPPING_LOOK,
    AttemptState.PENDING: PENDING_LOOK,
    AttemptState.RUNNING: RUNNING_LOOK,
}


def _next_look(made: Plan) -> float | None:
    states = {stage.state for stage in made.status.stages if stage.attempt}
    return next((seconds for state, seconds in _LOOKS.items() if state in states), None)


def _soonest(*waits: float | None) -> float | None:
    return min((wait for wait in waits if wait is not None), default=None)
