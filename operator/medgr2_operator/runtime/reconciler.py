"""Reconciles one cycle: reads it with its Jobs and pods, plans, and applies the plan. What is lost with the process is
read again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from medgr2_api.cycle import Cycle
from medgr2_api.redaction import redact
from medgr2_api.status import CycleStatus, Phase
from medgr2_api.unsupported import unsupported
from medgr2_api.validation_errors import dotted, explain

from ..kube.client import (
    CYCLES,
    JOBS,
    PODS,
    SERVICES,
    ApiError,
    Client,
    ConflictError,
    Manifest,
    NotFoundError,
    Resource,
)
from ..kube.events import EventRecorder
from ..plan import planner
from ..plan.observation_index import oldest_relevant_iteration
from ..plan.types import AttemptKey, Event, JobCreate, JobState, Observed, ObservedJob, Plan, Refusal
from ..render import labels
from ..render.job import job as render_job
from ..render.render_context import RenderError, RenderSettings
from ..render.trial import unrenderable, without_accelerator
from . import observe, requeue
from .bounded_work import Setbacks, compute
from .cause_reader import CauseReader
from .first_seen import FirstSeen
from .pod_state import owner_uid
from .progress_poller import ProgressPoller
from .pvc_check import VolumeCheck, WorkspaceState
from .rejection import INVALID, rejected, standing_still
from .why_waiting import Surroundings
from .workqueue import CycleKey

_log = logging.getLogger(__name__)

#: HTTP status of an object whose fields are wrong, which will never be taken; also what some admission policies answer.
_INVALID_OBJECT = 422
#: Why nothing is done for a cycle whose work took too long or ended the process.
SET_BACK = "SetBack"


class ReconcileObserver:
    """Is notified of what was reconciled; the metrics are."""

    def on_stored(self, cycle: Cycle, plan: Plan) -> None:
        """The status of a plan was written; `cycle` is as it was before. Once per transition, whatever fails later."""

    def on_done(self, cycle: Cycle, plan: Plan) -> None:
        """All of a plan was applied."""

    def on_invalid(self, key: CycleKey) -> None:
        """The spec of a cycle cannot be run."""

    def on_gone(self, key: CycleKey) -> None:
        """There is no such cycle any more."""


class Reconciler:
    """`await reconciler(key)` reconciles one cycle; returns the seconds after which to do so again."""

    def __init__(
        self,
        client: Client,
        settings: RenderSettings,
        recorder: EventRecorder,
        poller: ProgressPoller,
        observer: ReconcileObserver | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        setbacks: Setbacks | None = None,
    ) -> None:
        self._setbacks = setbacks or Setbacks(None)
        self._client, self._settings, self._recorder = client, settings, recorder
        self._poller, self._observer = poller, observer or ReconcileObserver()
        self._now, self._volume_check = now, VolumeCheck(client)
        self._foreign_jobs: dict[CycleKey, dict[str, ObservedJob]] = {}
        """Jobs under a name of a cycle's Job that the cycle does not own, by name."""
        self._uids: dict[CycleKey, dict[str, str]] = {}
        """Uids of created Jobs, by name, until they are in a status: no status is written for them alone."""
        self._causes = CauseReader(client)
        self._first_seen = FirstSeen()
        self._refusals: dict[CycleKey, dict[AttemptKey, Refusal]] = {}
        """What the API server did not take, until it does. After a restart it is asked again."""

    async def __call__(self, key: CycleKey) -> float | None:
        if (left := self._setbacks.left(key)) > 0 and not await self._edited(key):
            await self._say(key, SET_BACK, f"{self._setbacks.why(key)}: it is set back, and tried again later")
            return left
        with self._setbacks.working_on(key):
            try:
                return await self._reconcile(key)
            except Exception as error:
                if not (isinstance(error, ApiError) and error.passes):
                    await self._say(key, "ReconcileError", f"{type(error).__name__}: {error}")
                raise

    async def _reconcile(self, key: CycleKey) -> float | None:
        try:
            manifest = await self._client.get(CYCLES, key.name, key.namespace)
        except NotFoundError:
            self._observer.on_gone(key)
            self._poller.watch(key, ())
            self._uids.pop(key, None)
            self._refusals.pop(key, None)
            self._foreign_jobs.pop(key, None)
            self._first_seen.forget(key)
            return None
        cycle, problems, reason = await compute(lambda: _read(manifest, self._settings))
        if cycle is None:
            await self._reject(manifest, "; ".join(problems), reason)
            return None
        if (left := self._time_to_live(cycle, cycle.status)) is not None and left <= 0:
            await self._client.delete(CYCLES, key.name, key.namespace, uid=cycle.metadata.uid)
            return None
        if problems:
            await self._reject(manifest, "; ".join(problems), reason)
            return None

        self._add_uids(key, cycle)
        # pods after Jobs, both after the cycle: what the planner finds missing has really vanished
        jobs = await self._list(JOBS, cycle)
        pods = await self._list(PODS, cycle)
        workspace = await self._volume_check.of(cycle)
        now, lasting = self._now(), self._first_seen.update(key, observe.lasting_facts(pods))
        observed = await self._observe(key, cycle, workspace, jobs, pods, now, lasting)
        try:
            plan, objects = await compute(lambda: _planned(cycle, observed, now, self._settings, workspace.single_node))
        except RenderError as error:
            await self._reject(manifest, str(error), error.reason)
            return None
        try:
            all_created = await self._apply(key, cycle, manifest, plan, objects)
        except ConflictError:
            return 0.0  # the cycle was changed since it was read
        for pod in observe.overdue_pods(pods, lasting):
            # else the stage waits for a node that may never come back; if it does, fencing protects the volume
            _log.warning("deleting pod %s of a lost node", pod["metadata"]["name"])
            await self._client.delete(
                PODS, pod["metadata"]["name"], key.namespace, uid=pod["metadata"]["uid"], grace_seconds=0
            )
        if not self._refusals.get(key):
            self._observer.on_done(cycle, plan)
        self._poller.watch(key, observe.running_pods(pods))
        volume = requeue.PENDING if workspace.problem else None  # claims are not watched
        ttl, overdue = self._time_to_live(cycle, plan.status), observe.next_overdue(pods, lasting)
        news = None if all_created else 0.0
        outlived = observe.next_outlived(pods, lasting)
        stages = (requeue.by_stage(stage, now) for stage in plan.status.stages)
        return requeue.earliest(plan.requeue_after, ttl, volume, overdue, outlived, news, *stages)

    # -- observe -------------------------------------------------------------------------------------------------------

    async def _list(self, resource: Resource, cycle: Cycle) -> list[Manifest]:
        selector = f"{labels.CYCLE_UID}={cycle.metadata.uid}"
        if past := ",".join(map(str, range(oldest_relevant_iteration(cycle)))):
            selector += f",{labels.ITERATION} notin ({past})"
        return await self._client.list(resource, cycle.metadata.namespace, labels=selector, keep=observe.needed)

    def _add_uids(self, key: CycleKey, cycle: Cycle) -> None:
        """Adds the uids of Jobs created since to the status that was read."""
        known = self._uids.pop(key, {})
        for number, stage in enumerate(cycle.status.stages):
            if stage.job_name in known and not stage.job_uid:
                self._uids.setdefault(key, {})[stage.job_name] = known[stage.job_name]
                cycle.status.stages[number] = stage.model_copy(update={"job_uid": known[stage.job_name]})

    async def _observe(
        self,
        key: CycleKey,
        cycle: Cycle,
        workspace: WorkspaceState,
        jobs: list[Manifest],
        pods: list[Manifest],
        now: datetime,
        lasting: Mapping[str, float],
    ) -> Observed:
        around = await self._causes.read(cycle, workspace, jobs, pods, Surroundings(now, lasting=lasting))
        progress = self._poller.progress(key)
        observed = [
            replace(job, progress=progress[job.key]) if job.key in progress else job
            for job in observe.jobs(jobs, pods, cycle.metadata.uid, around)
        ]
        foreign_jobs = await self._foreign_jobs_of(key, cycle)
        live_pods = tuple(observe.live_pods(pods))
        refusals = tuple(self._refusals.get(key, {}).values())
        return Observed((*observed, *foreign_jobs), live_pods, not workspace.problem, workspace.problem, refusals)

    async def _foreign_jobs_of(self, key: CycleKey, cycle: Cycle) -> list[ObservedJob]:
        """The cycle's foreign Jobs that still exist, and whose names it still wants."""
        wanted, existing = {stage.job_name for stage in cycle.status.stages}, {}
        for name, job in self._foreign_jobs.get(key, {}).items():
            if name in wanted:
                with suppress(NotFoundError):
                    await self._client.get(JOBS, name, key.namespace)
                    existing[name] = job
        self._foreign_jobs.pop(key, None)
        if existing:
            self._foreign_jobs[key] = existing
        return list(existing.values())

    # -- apply ---------------------------------------------------------------------------------------------------------

    async def _apply(
        self,
        key: CycleKey,
        cycle: Cycle,
        manifest: Manifest,
        plan: Plan,
        objects: list[tuple[JobCreate, list[Manifest]]],
    ) -> bool:
        """Status, deletes, creates, events: the next reconcile completes what a crash between any two leaves undone.

        Returns:
            False: something was not created, for a reason that is not in the status yet.
        """
        namespace = cycle.metadata.namespace
        if plan.status != cycle.status or plan.creates or plan.deletes:
            # 409 when the cycle was changed since it was read
            manifest = await self._client.replace_status(CYCLES, {**manifest, "status": plan.status.dump()})
            self._observer.on_stored(cycle, plan)
        for delete in plan.deletes:
            _log.info("deleting Job %s: %s", delete.name, delete.reason)
            await self._client.delete(JOBS, delete.name, namespace, uid=delete.uid)
        known = self._refusals.pop(key, {})
        created = [await self._create_all(key, cycle, create, rendered, known) for create, rendered in objects]
        await asyncio.gather(*(self._recorder.record(manifest, event) for event in plan.events))
        return all(created)

    async def _create_all(
        self,
        key: CycleKey,
        cycle: Cycle,
        create: JobCreate,
        rendered: list[Manifest],
        known: Mapping[AttemptKey, Refusal],
    ) -> bool:
        """Creates an attempt's objects. What the API server refuses goes into the next status.

        Returns:
            False: something is new to the status.
        """
        try:
            for manifest in rendered:
                uid = await self._create(cycle, manifest, create if manifest["kind"] == JOBS.kind else None)
                if not uid:
                    return False
            self._uids.setdefault(key, {})[create.name] = uid  # the Job's: it is the last
        except ApiError as error:
            _log.warning("%s was not created: %s", create.name, error)
            final = error.status == _INVALID_OBJECT and bool(error.fields)
            refusal = Refusal(create.key, redact(error.server_message), final)
            self._refusals.setdefault(key, {})[create.key] = refusal
            return create.key in known  # a new message can wait for the next try
        return True

    async def _create(self, cycle: Cycle, rendered: Manifest, create: JobCreate | None) -> str:
        """Creates a Job or a Service. One that the cycle owns already was created before a crash; a foreign one stays.

        Returns:
            Its uid; empty: a foreign Job has the name.
        """
        resource = SERVICES if rendered["kind"] == SERVICES.kind else JOBS
        name, namespace = rendered["metadata"]["name"], cycle.metadata.namespace
        try:
            created = await self._client.create(resource, rendered)
            _log.info("created %s %s", rendered["kind"], name)
            return str(created["metadata"]["uid"])
        except ConflictError:
            existing = await self._client.get(resource, name, namespace)
            if owner_uid(existing) == cycle.metadata.uid:
                return str(existing["metadata"]["uid"])
            if create is None:
                raise ApiError(
                    f"{rendered['kind']} {name} exists and is not owned by this cycle; delete it, or rename the cycle"
                ) from None
            foreign = ObservedJob(create.key, name, existing["metadata"]["uid"], JobState.RUNNING, owned=False)
            self._foreign_jobs.setdefault(CycleKey(namespace, cycle.metadata.name), {})[name] = foreign
            await self._recorder.record(
                await self._client.get(CYCLES, cycle.metadata.name, namespace),
                Event(
                    "Warning", "NameConflict", f"Job {name} exists and is not owned by this cycle; it is left as it is"
                ),
            )
            return ""

    async def _reject(self, manifest: Manifest, message: str, reason: str) -> None:
        """Reports why a spec cannot be run. What runs goes on; an edit of the spec calls for another reconcile."""
        self._observer.on_invalid(CycleKey(manifest["metadata"]["namespace"], manifest["metadata"]["name"]))
        await self._stand_still(manifest, rejected(manifest, redact(message), self._now(), reason), reason, message)

    async def _say(self, key: CycleKey, reason: str, message: str) -> None:
        """Reports why nothing is done for a cycle, as far as the API server takes it."""
        try:
            manifest = await self._client.get(CYCLES, key.name, key.namespace)
            status = standing_still(manifest, reason, redact(message), self._now())
            await self._stand_still(manifest, status, reason, message)
        except NotFoundError:
            self._setbacks.forget(key)
        except ApiError as error:
            _log.warning("%s: %s cannot be told: %s", key, reason, error)

    async def _edited(self, key: CycleKey) -> bool:
        """Whether a cycle has another spec than when its status last said that it is set back: the mended one need not
        wait."""
        try:
            manifest = await self._client.get(CYCLES, key.name, key.namespace)
        except ApiError:
            return False
        conditions = (manifest.get("status") or {}).get("conditions") or ()
        told = next((c for c in conditions if c["type"] == "Progressing" and c["reason"] == SET_BACK), None)
        return told is not None and told.get("observedGeneration") != manifest["metadata"].get("generation")

    async def _stand_still(self, manifest: Manifest, status: Manifest | None, reason: str, message: str) -> None:
        """Writes that the cycle does not progress, with an event; None: its status says so already."""
        if status is not None:
            written = await self._client.replace_status(CYCLES, {**manifest, "status": status})
            await self._recorder.record(written, Event("Warning", reason, message))

    def _time_to_live(self, cycle: Cycle, status: CycleStatus) -> float | None:
        """Seconds until a finished cycle is deleted; None: never, or not finished."""
        ttl, ended = cycle.spec.ttl_seconds_after_finished, status.completion_time
        if ttl is None or ended is None or cycle.metadata.deletion_timestamp is not None:
            return None
        return (ended + timedelta(seconds=ttl) - self._now()).total_seconds()


def _read(manifest: Manifest, settings: RenderSettings) -> tuple[Cycle | None, list[str], str]:
    """The cycle, if it can be read; what keeps it from being run, and the reason for its conditions."""
    try:
        cycle = Cycle.as_written(manifest)
    except ValidationError as error:
        found = explain(error, Cycle, lambda location: None)
        return None, [f"{dotted(place)}: {message}" for place, message in found], INVALID
    if problems := unsupported(cycle.spec):
        return cycle, list(map(str, problems)), INVALID
    errors = [] if _was_accepted(cycle) else unrenderable(cycle, settings) or without_accelerator(cycle, settings)
    return cycle, list(map(str, errors)), next((error.reason for error in errors), "")


def _was_accepted(cycle: Cycle) -> bool:
    """Whether this very spec was found good before: its stages need not be tried again."""
    refused = cycle.status.phase is Phase.INVALID
    return cycle.status.observed_generation == cycle.metadata.generation and not refused


def _planned(
    cycle: Cycle, observed: Observed, now: datetime, settings: RenderSettings, single_node: bool
) -> tuple[Plan, list[tuple[JobCreate, list[Manifest]]]]:
    """The plan, and the objects of each attempt that it creates.

    Raises:
        RenderError: one of them cannot be.
    """
    plan = planner.plan(cycle, observed, now)
    return plan, [(create, render_job(cycle, create, settings, single_node)) for create in plan.creates]
