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
from ..render.pod import MAIN

_INDEX = "batch.kubernetes.io/job-completion-index"
_FINISHED = ("Succeeded", "Failed")
_SPEC = ("suspend", "completions", "backoffLimitPerIndex", "nodeName")
#: Restarts of a sidecar after which it counts as broken.
SIDECAR_RESTARTS = 3
#: How long after its grace period a pod counts as lost.
LOST_AFTER = timedelta(seconds=60)
#: Reasons of a pod's status for an end that its containers did not cause.
_EVICTION_REASONS = ("Evicted", "Preempting", "NodeLost", "NodeShutdown", "Terminated", "Shutdown")
#: Reason of a stage that waits → the kubelet's reasons of its container.
_WAITING_REASONS = {
    "ImagePull": ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"),
    "ContainerConfig": ("CreateContainerConfigError", "CreateContainerError"),
}
#: What podFailurePolicy writes into the Job's condition.
_CONDITION_MESSAGE = re.compile(r"failed with exit code (\d+)")


def needed(manifest: Manifest) -> Manifest:
    """What is read of a Job or pod: a tenth of it. A long cycle has hundreds."""
    metadata, spec = manifest["metadata"], manifest.get("spec") or {}
    return {
        "metadata": {name: value for name, value in metadata.items() if name != "managedFields"},
        "spec": {name: spec[name] for name in _SPEC if name in spec},
        "status": manifest.get("status") or {},
    }


def key_of(manifest: Manifest) -> AttemptKey | None:
    """Which attempt an object belongs to."""
    return labels.attempt_key(manifest["metadata"].get("labels") or {})


def owner_uid(manifest: Manifest) -> str:
    """Uid of the object that controls this one; empty: none does."""
    owners = manifest["metadata"].get("ownerReferences") or ()
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), "")


def live_pods(pods: Iterable[Manifest]) -> Iterator[ObservedPod]:
    """Pods that may still write."""
    for pod in pods:
        key = key_of(pod)
        if key is not None and _alive(pod):
            metadata = pod["metadata"]
            yield ObservedPod(metadata["name"], key, "deletionTimestamp" in metadata)


def overdue_pods(pods: Iterable[Manifest], now: datetime) -> Iterator[Manifest]:
    """Pods that should have ended long ago and of which their kubelet reports nothing: their node is lost.

    A healthy kubelet kills a container when its grace period is over, and reports it. (The node itself is not read: an
    operator for one namespace has no permission to.)
    """
    return (pod for pod in pods if (left := _seconds_to_lost(pod, now)) is not None and left <= 0)


def next_overdue(pods: Iterable[Manifest], now: datetime) -> float | None:
    """Seconds until the next pod is overdue, should its kubelet stay silent; None: none is asked to end."""
    lefts = (_seconds_to_lost(pod, now) for pod in pods)
    return min((left for left in lefts if left is not None and left > 0), default=None)


def _seconds_to_lost(pod: Manifest, now: datetime) -> float | None:
    ends = _time(pod["metadata"].get("deletionTimestamp"))  # when the grace is over
    return (ends + LOST_AFTER - now).total_seconds() if ends and "running" in _main(pod) else None


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
    now: datetime,
    quota: Mapping[str, str] | None = None,
) -> Iterator[ObservedJob]:
    """Jobs with what their pods tell.

    Args:
        manifests: the Jobs.
        pods: all pods of the cycle, finished ones included.
        cycle_uid: of the owner of its Jobs.
        now: the time, with its zone.
        quota: by uid of a Job, why its queue holds it back.
    """
    by_job: dict[str, list[Manifest]] = defaultdict(list)
    for pod in pods:
        by_job[owner_uid(pod)].append(pod)
    lost = {owner_uid(pod): _silence(pod) for pod in overdue_pods(pods, now)}
    for manifest in manifests:
        key = key_of(manifest)
        if key is not None:
            uid = manifest["metadata"]["uid"]
            seen = _job(manifest, key, by_job[uid], (quota or {}).get(uid, ""))
            yield replace(
                seen,
                owned=owner_uid(manifest) == cycle_uid,
                lost=lost.get(uid, ""),
                # what a container or a kubelet says goes into conditions and events
                message=redact(seen.message),
                pending_message=redact(seen.pending_message),
                stuck=redact(seen.stuck),
            )


def _job(manifest: Manifest, key: AttemptKey, pods: Sequence[Manifest], quota: str) -> ObservedJob:
    metadata = manifest["metadata"]
    # a Job that its queue suspended still has pods for a moment that have ended
    at_work = [pod for pod in pods if _alive(pod)] if manifest["spec"].get("suspend") else pods
    job = ObservedJob(
        key=key,
        name=metadata["name"],
        uid=metadata["uid"],
        state=JobState.QUEUED,
        deleting="deletionTimestamp" in metadata,
        started=min(filter(None, map(_started, at_work)), default=None),
        stuck=next(filter(None, map(_broken_sidecar, pods)), ""),
    )
    conditions = manifest.get("status", {}).get("conditions") or ()
    ended = {condition["type"]: condition for condition in conditions if condition.get("status") == "True"}
    if "Complete" in ended:
        return _succeeded(job, manifest, pods, ended["Complete"])
    if "Failed" in ended:
        return _failed(job, pods, ended["Failed"])
    if job.started is not None:
        return replace(job, state=JobState.RUNNING)
    reason, message = _why_waiting(manifest, pods, quota)
    return replace(job, pending_reason=reason, pending_message=message)


# -- ends --------------------------------------------------------------------------------------------------------------


def _succeeded(job: ObservedJob, manifest: Manifest, pods: Sequence[Manifest], condition: Manifest) -> ObservedJob:
    """The result of every part; none where one of them cannot be read any more."""
    spec = manifest["spec"]
    shards = int(spec.get("completions") or 1) if "backoffLimitPerIndex" in spec else 1  # else rank 0 speaks for all
    ends = {_index(pod): _terminated(pod) for pod in pods if pod["status"].get("phase") == "Succeeded"}
    return replace(
        job,
        state=JobState.SUCCEEDED,
        exit_code=0,
        result=combine([_result(ends.get(index, {})) for index in range(shards)]),
        finished=max(filter(None, (_time(end.get("finishedAt")) for end in ends.values())), default=_since(condition)),
    )


def _failed(job: ObservedJob, pods: Sequence[Manifest], condition: Manifest) -> ObservedJob:
    """What explains a failure: the first pod that failed by itself, else a disruption, else the Job's condition."""
    failed = [pod for pod in pods if pod["status"].get("phase") == "Failed"]
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
        finished=_time(end.get("finishedAt")) or job.finished,
    )


# -- pods --------------------------------------------------------------------------------------------------------------


def _alive(pod: Manifest) -> bool:
    return pod.get("status", {}).get("phase") not in _FINISHED


def _main(pod: Manifest) -> Manifest:
    """State of the container that does the work; empty before it has one."""
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    state: Manifest = next((status.get("state") or {} for status in statuses if status.get("name") == MAIN), {})
    return state


def _terminated(pod: Manifest) -> Manifest:
    end: Manifest = _main(pod).get("terminated") or {}
    return end


def _exit_code(pod: Manifest) -> int:
    return int(_terminated(pod).get("exitCode", ExitCode.ERROR))


def _finished_at(pod: Manifest) -> str:
    return str(_terminated(pod).get("finishedAt", ""))


def _started(pod: Manifest) -> datetime | None:
    state = _main(pod)
    return _time((state.get("running") or state.get("terminated") or {}).get("startedAt"))


def _index(pod: Manifest) -> int:
    annotations = pod["metadata"].get("annotations") or {}
    return int(annotations.get(_INDEX, 0))


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


# -- waiting -----------------------------------------------------------------------------------------------------------


def _why_waiting(manifest: Manifest, pods: Sequence[Manifest], quota: str) -> tuple[str, str]:
    """Reason and message of a Job none of whose pods works yet."""
    if manifest["spec"].get("suspend"):
        return "QuotaExhausted" if quota else "Queued", quota or "waiting for its queue"
    for pod in pods:
        status = pod.get("status", {})
        for condition in status.get("conditions") or ():
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                message = condition.get("message", "")
                return "UnboundVolume" if "PersistentVolumeClaim" in message else "Unschedulable", message
        containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
        for container in containers:
            waiting = (container.get("state") or {}).get("waiting") or {}
            for reason, kubelet_reasons in _WAITING_REASONS.items():
                if waiting.get("reason") in kubelet_reasons:
                    return reason, f"{waiting['reason']}: {waiting.get('message', '')}"
    return "", ""


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _since(condition: Manifest) -> datetime | None:
    return _time(condition.get("lastTransitionTime"))
