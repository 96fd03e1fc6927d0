"""What a Job or its pods wait for: from Job, pod and, where neither says it, events. Pure: JSON in, a reason out.

Only words that are enumerated are compared: reasons of conditions, containers and events. What Kubernetes says in
sentences alone is which Secret and which volume is missing: there the names that the pod itself asks for are sought.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from medgr2_api.waiting import WaitingReason

from ..kube.client import Manifest
from ..plan.types import AttemptKey
from ..render.job import QUEUE_LABEL
from ..render.pod import MAIN
from .pod_state import has_ended, main_state, outlived, started

#: Seconds in which a Job gets its pods and a pod its containers; before they are over nothing is amiss.
STARTING_SECONDS = 10.0
#: Pods of a Job whose events are asked for: a thousand shards wait for the same.
_PODS_ASKED = 2
_IMAGE_REASONS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "RegistryUnavailable",
        "ImageInspectError",
        "SignatureValidationFailed",
    }
)
_REFUSED_REASONS = frozenset(
    {
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
        "PreCreateHookError",
        "PreStartHookError",
        "PostStartHookError",
    }
)
_VOLUME_EVENTS = frozenset({"FailedMount", "FailedAttachVolume", "FailedMapVolume", "FailedDaemonSetMount"})
_PULL_SECRET_EVENT = "FailedToRetrieveImagePullSecret"
_POD_FAILED_EVENT = "FailedCreate"

Cause = tuple[WaitingReason, str]
"""Reason and message."""


@dataclass(frozen=True)
class Surroundings:
    """What is known beside Jobs and pods."""

    now: datetime
    quota: Mapping[str, str] = field(default_factory=dict)
    """By uid of a Job, why its queue holds it back."""
    events: Mapping[str, Sequence[Manifest]] = field(default_factory=dict)
    """By uid of a Job or pod, its events."""
    since: Mapping[AttemptKey, datetime] = field(default_factory=dict)
    """Since when attempts wait, by the clock that `now` is of."""
    lasting: Mapping[str, float] = field(default_factory=dict)
    """By fact about a pod (`pod_state`), for how many seconds this process has seen it so."""
    claim_is_bound: bool = True
    """Whether the workspace's claim has its volume."""

    def just_began(self, key: AttemptKey) -> bool:
        """Whether it is too early for anything to be amiss."""
        since = self.since.get(key)
        return since is not None and (self.now - since).total_seconds() < STARTING_SECONDS


def uids_with_events(
    jobs: Iterable[tuple[AttemptKey, Manifest, Sequence[Manifest]]], around: Surroundings
) -> Iterator[str]:
    """Jobs and pods that do not say themselves what they wait for."""
    for key, job, pods in jobs:
        if around.just_began(key) or job["spec"].get("suspend"):
            continue
        if len(pods) < _expected_pods(job):
            yield job["metadata"]["uid"]
        silent = [pod for pod in pods if _waits(pod) and _scheduled(pod)]
        for pod in silent[:_PODS_ASKED]:
            yield pod["metadata"]["uid"]


def why_waiting(key: AttemptKey, job: Manifest, pods: Sequence[Manifest], around: Surroundings) -> Cause | None:
    """What an unfinished Job, or the first of its pods that does not work, waits for; None: for nothing."""
    if job["spec"].get("suspend"):
        if any(map(started, pods)) and not all(map(has_ended, pods)):
            return None  # its pods are still to end
        queued = QUEUE_LABEL in (job["metadata"].get("labels") or {})
        otherwise = "waiting for its queue" if queued else "its Job is suspended"
        return WaitingReason.AWAITING_QUOTA, around.quota.get(job["metadata"]["uid"]) or otherwise
    causes = [_of_pod(key, pod, around) for pod in pods if _waits(pod)]
    missing = _expected_pods(job) - len(pods)
    if missing > 0:
        causes += [_without_pods(key, job, around)] * missing
    cause = next((cause for cause in causes if cause[0] is not WaitingReason.STARTING), next(iter(causes), None))
    if cause is None:
        return next(filter(None, (_outlived(pod, around) for pod in pods)), None)
    if len(causes) == len(pods) + max(0, missing) == 1 or cause[0] is WaitingReason.STARTING:
        return cause
    return cause[0], f"{len(causes)} of {len(pods) + max(0, missing)} pods: {cause[1]}"


def _expected_pods(job: Manifest) -> int:
    return min(int(job["spec"].get("parallelism") or 1), int(job["spec"].get("completions") or 1))


def _waits(pod: Manifest) -> bool:
    """Whether its work has not begun."""
    return not has_ended(pod) and started(pod) is None


def _scheduled(pod: Manifest) -> bool:
    return bool(pod.get("spec", {}).get("nodeName"))


def _without_pods(key: AttemptKey, job: Manifest, around: Surroundings) -> Cause:
    """A Job that lacks pods."""
    newest = _newest(around.events.get(job["metadata"]["uid"], ()), _POD_FAILED_EVENT)
    if newest is not None:
        return WaitingReason.PODS_NOT_CREATED, str(newest.get("message", ""))
    if around.just_began(key):
        return WaitingReason.STARTING, ""
    return WaitingReason.PODS_NOT_CREATED, "its Job has no pods, and no event says why"


def _of_pod(key: AttemptKey, pod: Manifest, around: Surroundings) -> Cause:
    return (
        _unscheduled(key, pod, around)
        or _held_container(pod, around)
        or _not_brought_up(key, pod, around)
        or (WaitingReason.STARTING, "")
    )


def _unscheduled(key: AttemptKey, pod: Manifest, around: Surroundings) -> Cause | None:
    """Without a node."""
    for condition in pod.get("status", {}).get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            message = str(condition.get("message", ""))
            if condition.get("reason") == "SchedulingGated":
                gates = ", ".join(gate["name"] for gate in pod["spec"].get("schedulingGates") or ())
                return WaitingReason.SCHEDULING_GATED, gates or message
            if not around.claim_is_bound or "persistentvolumeclaim" in message.lower():
                return WaitingReason.AWAITING_VOLUME, message
            return WaitingReason.UNSCHEDULABLE, message
    if _scheduled(pod) or around.just_began(key):
        return None
    scheduler = pod.get("spec", {}).get("schedulerName") or "default-scheduler"
    return WaitingReason.UNSCHEDULABLE, f"scheduler {scheduler} has not looked at it"


def _held_container(pod: Manifest, around: Surroundings) -> Cause | None:
    """A container that the kubelet says something about."""
    status = pod.get("status", {})
    first, containers = status.get("initContainerStatuses") or (), status.get("containerStatuses") or ()
    for container in (*first, *containers):
        state = (container.get("state") or {}).get("waiting") or {}
        reason, message = state.get("reason"), f"{container['name']}: {state.get('reason')}: {state.get('message', '')}"
        if reason in _IMAGE_REASONS:
            secret = _newest(around.events.get(pod["metadata"].get("uid", ""), ()), _PULL_SECRET_EVENT)
            if secret is None:
                return WaitingReason.IMAGE_PULL, message
            return WaitingReason.AWAITING_SECRET, f"{secret.get('message', '')} {message}"
        if reason in _REFUSED_REASONS:
            missing = _is_named(_secrets_of(pod), message)
            return WaitingReason.AWAITING_SECRET if missing else WaitingReason.CONTAINER_CONFIG, message
        if reason == "CrashLoopBackOff":
            return WaitingReason.INIT_CONTAINERS, message
    specs = pod.get("spec", {}).get("initContainers") or ()
    sidecars = {spec["name"] for spec in specs if spec.get("restartPolicy") == "Always"}
    for container in first:
        in_the_way = not container.get("started") if container["name"] in sidecars else True
        if "running" in (container.get("state") or {}) and in_the_way:
            what = "is not ready yet" if container["name"] in sidecars else "has not ended yet"
            return WaitingReason.INIT_CONTAINERS, f"{container['name']} {what}"
    return None


def _not_brought_up(key: AttemptKey, pod: Manifest, around: Surroundings) -> Cause | None:
    """On its node, and no container has begun."""
    if around.just_began(key):
        return None
    warnings = [e for e in around.events.get(pod["metadata"].get("uid", ""), ()) if e.get("type") == "Warning"]
    newest = _newest(warnings)
    node = pod.get("spec", {}).get("nodeName", "")
    if newest is None:
        return WaitingReason.CONTAINER_CREATING, f"node {node} has not started it, and no event says why"
    message = f"{newest.get('reason')}: {newest.get('message', '')}"
    if newest.get("reason") in _VOLUME_EVENTS:
        missing = _is_named({*_secrets_of(pod), *_volumes_of_secrets(pod)}, message)
        return WaitingReason.AWAITING_SECRET if missing else WaitingReason.AWAITING_VOLUME, message
    return WaitingReason.CONTAINER_CREATING, message


def _outlived(pod: Manifest, around: Surroundings) -> Cause | None:
    """A pod that goes on though its work has ended."""
    if around.lasting.get(outlived(pod), 0.0) < STARTING_SECONDS or not (message := still_running(pod)):
        return None
    return WaitingReason.SIDECAR_STILL_RUNS, message


def still_running(pod: Manifest) -> str:
    """What goes on beside work that has ended; empty: nothing."""
    end = main_state(pod).get("terminated") or {}
    others = [
        status["name"]
        for status in pod["status"].get("containerStatuses") or ()
        if status["name"] != MAIN and "terminated" not in (status.get("state") or {})
    ]
    if not others or not end:
        return ""
    return f"{', '.join(others)} still runs; {MAIN} ended with {end.get('exitCode')} at {end.get('finishedAt')}"


# -- names -------------------------------------------------------------------------------------------------------------


def _secrets_of(pod: Manifest) -> set[str]:
    """Names of the Secrets and ConfigMaps that a pod asks for."""
    spec = pod.get("spec", {})
    names: set[str] = set()
    for container in (*(spec.get("initContainers") or ()), *(spec.get("containers") or ())):
        sources = [variable.get("valueFrom") or {} for variable in container.get("env") or ()]
        for source in (*sources, *(container.get("envFrom") or ())):
            names |= {ref["name"] for kind, ref in source.items() if kind in _REFERENCES and ref.get("name")}
    for volume in spec.get("volumes") or ():
        projected = (volume.get("projected") or {}).get("sources") or ()
        for source in (volume, *projected):
            for kind in ("secret", "configMap"):
                names |= {source.get(kind, {}).get(word, "") for word in ("secretName", "name")}
    return names - {""}


_REFERENCES = ("secretKeyRef", "configMapKeyRef", "secretRef", "configMapRef")


def _volumes_of_secrets(pod: Manifest) -> set[str]:
    volumes = pod.get("spec", {}).get("volumes") or ()
    return {volume["name"] for volume in volumes if {"secret", "configMap", "projected"} & volume.keys()}


def _is_named(names: Iterable[str], message: str) -> bool:
    return any(re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])", message) for name in names)


def _newest(events: Iterable[Manifest], reason: str = "") -> Manifest | None:
    """The newest event (of this reason); a repeated one counts from its last time."""
    chosen = [event for event in events if not reason or event.get("reason") == reason]
    return max(chosen, key=_last_time, default=None)


def _last_time(event: Manifest) -> str:
    series = event.get("series") or {}
    return str(series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime") or "")
