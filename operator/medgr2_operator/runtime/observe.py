"""From the API server's Jobs and pods to what the planner observes. Pure: JSON in, records out."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from pydantic import ValidationError

from medgr2_api.redaction import redact
from medgr2_api.stage_contract import ExitCode, StageResult

from ..kube.client import Manifest
from ..plan.failure_policy import LossReason
from ..plan.shard_results import combine, worst
from ..plan.types import AttemptKey, JobState, ObservedJob, ObservedPod
from ..render import labels
from .pod_state import ending, has_ended, main_state, outlived, owner_uid, started, time_of
from .why_waiting import STARTING_SECONDS, Surroundings, still_running, why_waiting

_INDEX = "batch.kubernetes.io/job-completion-index"
_NUMBER = re.compile(r"[0-9]{1,9}")
_SPEC = ("suspend", "completions", "parallelism", "backoffLimitPerIndex", "nodeName")
#: And of a pod that waits, what it may wait for.
_ASKED_FOR = ("schedulerName", "schedulingGates", "initContainers", "containers", "volumes")
#: Restarts of a sidecar after which it counts as broken.
SIDECAR_RESTARTS = 3
#: Seconds after its grace period when a pod counts as lost.
LOST_AFTER = 60.0
#: Seconds that a pod may go on without its work (a sidecar that somebody injected) before its Job counts as ended.
OUTLIVED_AFTER = 60.0
#: Two clocks of one control plane, and the part of a second that their times leave out.
_CLOCKS_APART = timedelta(seconds=1)
#: Reasons of a pod's status for an end that its containers did not cause.
_EVICTION_REASONS = ("Evicted", "Preempting", "NodeLost", "NodeShutdown", "Terminated", "Shutdown")
#: What podFailurePolicy writes into the Job's condition.
_CONDITION_MESSAGE = re.compile(r"failed with exit code (\d+)")


def needed(manifest: Manifest) -> Manifest:
    """What is read of a Job or pod: a tenth of it. A long cycle has hundreds."""
    metadata, spec, status = manifest["metadata"], manifest.get("spec") or {}, manifest.get("status") or {}
    kept = (*_SPEC, *_ASKED_FOR) if status.get("phase") == "Pending" else _SPEC
    return {
        "metadata": {name: value for name, value in metadata.items() if name != "managedFields"},
        "spec": {name: spec[name] for name in kept if name in spec},
        "status": status,
    }


def key_of(manifest: Manifest) -> AttemptKey | None:
    """Which attempt an object belongs to."""
    return labels.attempt_key(manifest["metadata"].get("labels") or {})


def live_pods(pods: Iterable[Manifest]) -> Iterator[ObservedPod]:
    """Pods that may still write."""
    for pod in pods:
        key = key_of(pod)
        if key is not None and not has_ended(pod):
            metadata = pod["metadata"]
            yield ObservedPod(metadata["name"], key, "deletionTimestamp" in metadata)


def lasting_facts(pods: Iterable[Manifest]) -> Iterator[str]:
    """What is true of pods and matters when it stays so."""
    return (fact for pod in pods for fact in (ending(pod), outlived(pod)) if fact)


def overdue_pods(pods: Iterable[Manifest], lasting: Mapping[str, float]) -> Iterator[Manifest]:
    """Pods that should have ended long ago and of which their kubelet reports nothing: their node is lost.

    A healthy kubelet kills a container when its grace period is over, and reports it. (The node itself is not read: an
    operator for one namespace has no permission to.)

    Args:
        pods: of a cycle.
        lasting: for how many seconds each of `lasting_facts` has been so.
    """
    return (pod for pod in pods if (left := _seconds_to_lost(pod, lasting)) is not None and left <= 0)


def next_overdue(pods: Iterable[Manifest], lasting: Mapping[str, float]) -> float | None:
    """Seconds until the next pod is overdue, should its kubelet stay silent; None: none is asked to end."""
    lefts = (_seconds_to_lost(pod, lasting) for pod in pods)
    return min((left for left in lefts if left is not None and left > 0), default=None)


def next_outlived(pods: Iterable[Manifest], lasting: Mapping[str, float]) -> float | None:
    """Seconds until a pod that goes on without its work should be looked at again; None: there is none such."""
    times = [lasting[fact] for pod in pods if (fact := outlived(pod)) in lasting]
    lefts = [moment - seconds for seconds in times for moment in (STARTING_SECONDS, OUTLIVED_AFTER)]
    return min((left if left > 0 else STARTING_SECONDS for left in lefts), default=None)


def _seconds_to_lost(pod: Manifest, lasting: Mapping[str, float]) -> float | None:
    """None: nobody asked it to end, or its kubelet has ended its work."""
    since, grace = lasting.get(ending(pod)), int(pod["metadata"].get("deletionGracePeriodSeconds") or 0)
    return None if since is None or "running" not in main_state(pod) else grace + LOST_AFTER - since


@dataclass(frozen=True)
class RunningPod:
    """A pod whose progress can be polled."""

    attempt: AttemptKey
    address: str


def running_pods(pods: Iterable[Manifest]) -> list[RunningPod]:
    """Pods that work and have an address."""
    running = []
    for pod in pods:
        key, status = key_of(pod), pod.get("status", {})
        if key is not None and status.get("phase") == "Running" and status.get("podIP"):
            running.append(RunningPod(key, str(status["podIP"])))
    return running


def jobs(
    manifests: Iterable[Manifest],
    pods: Sequence[Manifest],
    cycle_uid: str,
    around: Surroundings,
) -> Iterator[ObservedJob]:
    """Jobs with what their pods tell.

    Args:
        manifests: the Jobs.
        pods: all pods of the cycle, finished ones included.
        cycle_uid: of the owner of its Jobs.
        around: the time, queues and events.
    """
    lost = {owner_uid(pod): _silence(pod) for pod in overdue_pods(pods, around.lasting)}
    for key, manifest, own_pods in with_pods(manifests, pods):
        seen = _job(manifest, key, own_pods, around)
        uid = manifest["metadata"]["uid"]
        yield replace(
            seen,
            owned=owner_uid(manifest) == cycle_uid,
            lost=lost.get(uid, ""),
            # what a container or a kubelet says goes into conditions and events
            message=redact(seen.message),
            waiting_message=redact(seen.waiting_message),
            stuck=redact(seen.stuck),
        )


def with_pods(
    manifests: Iterable[Manifest], pods: Iterable[Manifest]
) -> Iterator[tuple[AttemptKey, Manifest, list[Manifest]]]:
    """Each Job of the cycle with its attempt and the pods of its present run."""
    by_job: dict[str, list[Manifest]] = defaultdict(list)
    for pod in pods:
        by_job[owner_uid(pod)].append(pod)
    for manifest in manifests:
        if (key := key_of(manifest)) is not None:
            own = by_job[manifest["metadata"]["uid"]]
            yield key, manifest, [pod for pod in own if not _of_an_earlier_run(pod, manifest)]


def _of_an_earlier_run(pod: Manifest, job: Manifest) -> bool:
    """Whether it ended because a queue took the quota of its Job back, which has got it again since: a pod stays for as
    long as its kubelet, or a finalizer, wants it to."""
    if job["spec"].get("suspend") or "deletionTimestamp" not in pod["metadata"] or not has_ended(pod):
        return False
    resumed = (_since(c) for c in job.get("status", {}).get("conditions") or () if c["type"] == "Suspended")
    created = time_of(pod["metadata"].get("creationTimestamp"))
    return created is not None and any(moment and created + _CLOCKS_APART < moment for moment in resumed)


def unfinished(job: Manifest) -> bool:
    """Whether a Job has not ended."""
    return not _ended(job)


def _ended(job: Manifest) -> dict[str, Manifest]:
    """The conditions by which a Job has ended, by type."""
    conditions = job.get("status", {}).get("conditions") or ()
    return {c["type"]: c for c in conditions if c.get("status") == "True" and c["type"] in ("Complete", "Failed")}


def _job(manifest: Manifest, key: AttemptKey, pods: Sequence[Manifest], around: Surroundings) -> ObservedJob:
    metadata = manifest["metadata"]
    # a Job that its queue suspended still has pods for a moment that have ended
    at_work = [pod for pod in pods if not has_ended(pod)] if manifest["spec"].get("suspend") else pods
    job = ObservedJob(
        key=key,
        name=metadata["name"],
        uid=metadata["uid"],
        state=JobState.QUEUED,
        deleting="deletionTimestamp" in metadata,
        started=min(filter(None, map(started, at_work)), default=None),
        stuck=next(filter(None, map(_broken_sidecar, pods)), ""),
    )
    ended = _ended(manifest)
    if "Complete" in ended:
        return _succeeded(job, manifest, pods, ended["Complete"])
    if "Failed" in ended:
        return _failed(job, pods, ended["Failed"])
    if left_over := _left_over(manifest, pods, around):
        failed = any(_exit_code(pod) for pod in pods)
        seen = _failed(job, pods, {}) if failed else _succeeded(job, manifest, pods, {})
        return replace(seen, left_over=left_over)
    if job.started is None:
        ends = (time_of(_terminated(pod).get("finishedAt")) for pod in pods)
        job = replace(job, finished=max(filter(None, ends), default=None))
    state = JobState.QUEUED if job.started is None else JobState.RUNNING
    cause = why_waiting(key, manifest, pods, around)
    if cause is None:
        return replace(job, state=state)
    return replace(job, state=state, waiting=cause[0], waiting_message=cause[1])


# -- ends --------------------------------------------------------------------------------------------------------------


def _succeeded(job: ObservedJob, manifest: Manifest, pods: Sequence[Manifest], condition: Manifest) -> ObservedJob:
    """The result of every part; none where one of them cannot be read any more."""
    spec = manifest["spec"]
    shards = int(spec.get("completions") or 1) if "backoffLimitPerIndex" in spec else 1  # else rank 0 speaks for all
    parts = int(spec.get("completions") or 1) > 1
    ends = {_index(pod) if parts else 0: _terminated(pod) for pod in pods if _terminated(pod) and _exit_code(pod) == 0}
    return replace(
        job,
        state=JobState.SUCCEEDED,
        exit_code=0,
        result=combine([_result(ends.get(index, {})) for index in range(shards)]),
        finished=max(
            filter(None, (time_of(end.get("finishedAt")) for end in ends.values())), default=_since(condition)
        ),
    )


def _failed(job: ObservedJob, pods: Sequence[Manifest], condition: Manifest) -> ObservedJob:
    """What explains a failure: the first pod that failed by itself, else a disruption, else the Job's condition."""
    failed = [pod for pod in pods if pod["status"].get("phase") == "Failed" or (outlived(pod) and _exit_code(pod))]
    own = sorted((pod for pod in failed if not _disruption(pod) and _terminated(pod)), key=_finished_at)
    lost = sorted((pod for pod in failed if _disruption(pod)), key=_finished_at)
    job = replace(job, state=JobState.FAILED, finished=_since(condition))
    if own:
        return _explained(job, own[worst([_exit_code(pod) for pod in own])])
    if lost:
        seen = _explained(job, lost[0])
        orderly = seen.exit_code == ExitCode.CHECKPOINTED
        return replace(seen, reason="" if orderly else LossReason.DISRUPTION, message=_disruption(lost[0]))
    match = _CONDITION_MESSAGE.search(condition.get("message", ""))
    code = int(match[1]) if match else None
    disrupted = "DisruptionTarget" in condition.get("message", "")
    reason = LossReason.DISRUPTION if disrupted else ""
    return replace(job, exit_code=code, reason=reason, message=condition.get("message", ""))


def _explained(job: ObservedJob, pod: Manifest) -> ObservedJob:
    """A failure as the pod that caused it reports it."""
    end = _terminated(pod)
    result = _result(end)
    reasons = {str(end.get("reason")), result.reason if result else ""}
    return replace(
        job,
        exit_code=_exit_code(pod),
        reason=next((word for word in (LossReason.OUT_OF_MEMORY, LossReason.RENDEZVOUS) if word in reasons), ""),
        message=result.message if result else str(end.get("message") or pod["status"].get("message", "")),
        result=result,
        finished=time_of(end.get("finishedAt")) or job.finished,
    )


def _left_over(manifest: Manifest, pods: Sequence[Manifest], around: Surroundings) -> str:
    """What keeps the pods of a Job alive whose work has ended for some time; empty: nothing, or it has not."""
    expected = int(manifest["spec"].get("completions") or 1)
    if manifest["spec"].get("suspend") or len(pods) < expected or not all(map(_terminated, pods)):
        return ""
    seconds = [around.lasting.get(outlived(pod), 0.0) for pod in pods if not has_ended(pod)]
    if not seconds or min(seconds) < OUTLIVED_AFTER:
        return ""
    return next((why for pod in pods if (why := still_running(pod))), "")


# -- pods --------------------------------------------------------------------------------------------------------------


def _terminated(pod: Manifest) -> Manifest:
    end: Manifest = main_state(pod).get("terminated") or {}
    return end


def _exit_code(pod: Manifest) -> int:
    return int(_terminated(pod).get("exitCode", ExitCode.ERROR))


def _finished_at(pod: Manifest) -> str:
    return str(_terminated(pod).get("finishedAt", ""))


def _index(pod: Manifest) -> int:
    """Its part of the Job; 0 where the Job has none, whatever a user's annotation says there."""
    found = _NUMBER.fullmatch(str((pod["metadata"].get("annotations") or {}).get(_INDEX, "")))
    return int(found[0]) if found else 0


def _result(end: Manifest) -> StageResult | None:
    try:
        return StageResult.model_validate_json(end.get("message") or "")
    except ValidationError:
        return None


def _disruption(pod: Manifest) -> str:
    """Why it was evicted, preempted or deleted; empty: it was not."""
    status = pod.get("status", {})
    for condition in status.get("conditions") or ():
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return f"{condition.get('reason', '')}: {condition.get('message', '')}"
    if status.get("reason") in _EVICTION_REASONS:  # the kubelet ended the pod, whatever its containers report
        return f"{status['reason']}: {status.get('message', '')}"
    return ""


def _silence(pod: Manifest) -> str:
    name, node = pod["metadata"]["name"], pod.get("spec", {}).get("nodeName", "")
    return f"pod {name} should have ended at {pod['metadata']['deletionTimestamp']}, and node {node} is silent"


def _broken_sidecar(pod: Manifest) -> str:
    """Why the pod will never get to its work; empty: it may."""
    for status in pod.get("status", {}).get("initContainerStatuses") or ():
        if int(status.get("restartCount", 0)) >= SIDECAR_RESTARTS and not status.get("ready"):
            end = (status.get("lastState") or {}).get("terminated") or {}
            return f"sidecar {status['name']} restarted {status['restartCount']} times: " + (
                str(end.get("message") or "").strip() or f"exit code {end.get('exitCode')}"
            )
    return ""


def _since(condition: Manifest) -> datetime | None:
    return time_of(condition.get("lastTransitionTime"))
