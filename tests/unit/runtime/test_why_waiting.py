"""Every reason of waiting, from JSON as API server, kubelet and controllers write it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from medgr2_api.waiting import WAITS, WaitingReason
from medgr2_operator.plan.types import AttemptKey, JobState, ObservedJob
from medgr2_operator.runtime import observe
from medgr2_operator.runtime.why_waiting import Surroundings, uids_with_events

UID = "cycle-uid"
KEY = AttemptKey(1, "sft", "", 2)
LABELS = {
    "medgr2.io/iteration": "1",
    "medgr2.io/stage": "sft",
    "medgr2.io/token": "",
    "medgr2.io/attempt": "2",
    "kueue.x-k8s.io/queue-name": "gpu",
}
NOW = datetime(2026, 1, 1, 0, 12, tzinfo=UTC)
LATER, EARLIER = "2026-01-01T00:11:00Z", "2026-01-01T00:01:00Z"
R = WaitingReason


def job(**spec: Any) -> dict[str, Any]:
    owners = [{"uid": UID, "controller": True}]
    metadata = {"name": "j", "uid": "job", "labels": LABELS, "ownerReferences": owners}
    return {"metadata": metadata, "spec": {"parallelism": 1, "completions": 1, **spec}, "status": {}}


def pod(number: int = 0, phase: str = "Pending", spec: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    owners = [{"uid": "job", "controller": True}]
    metadata = {"name": f"p{number}", "uid": f"pod-{number}", "labels": LABELS, "ownerReferences": owners}
    return {"metadata": metadata, "spec": {"nodeName": "n1", **(spec or {})}, "status": {"phase": phase, **status}}


def waiting(reason: str, message: str = "", container: str = "main") -> dict[str, Any]:
    return {"name": container, "state": {"waiting": {"reason": reason, "message": message}}}


def running(container: str = "main", **more: Any) -> dict[str, Any]:
    return {"name": container, "state": {"running": {"startedAt": EARLIER}}, **more}


def unscheduled(message: str, reason: str = "Unschedulable") -> dict[str, Any]:
    return {"conditions": [{"type": "PodScheduled", "status": "False", "reason": reason, "message": message}]}


def event(reason: str, message: str, at: str = LATER, kind: str = "Warning") -> dict[str, Any]:
    return {"type": kind, "reason": reason, "message": message, "lastTimestamp": at}


def seen(manifest: dict[str, Any], *pods: dict[str, Any], **around: Any) -> ObservedJob:
    kept = [observe.needed(pod) for pod in pods]
    [observed] = observe.jobs([observe.needed(manifest)], kept, UID, Surroundings(NOW, **around))
    return observed


def cause(manifest: dict[str, Any], *pods: dict[str, Any], **around: Any) -> tuple[WaitingReason | None, str]:
    observed = seen(manifest, *pods, **around)
    return observed.waiting, observed.waiting_message


def env_of(kind: str, name: str) -> dict[str, Any]:
    return {"containers": [{"name": "main", "env": [{"name": "KEY", "valueFrom": {kind: {"name": name, "key": "k"}}}]}]}


CREATING = {"containerStatuses": [waiting("ContainerCreating")]}
SECRET_VOLUME = {"volumes": [{"name": "keys", "secret": {"secretName": "hub"}}, {"name": "workspace"}]}


@pytest.mark.parametrize("word", ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "SignatureValidationFailed"])
@pytest.mark.parametrize("place", ["containerStatuses", "initContainerStatuses"])
def test_an_image_that_cannot_be_pulled(word: str, place: str) -> None:
    reason, message = cause(job(), pod(**{place: [waiting(word, "no such image", "vllm")]}))
    assert (reason, message) == (R.IMAGE_PULL, f"vllm: {word}: no such image")


def test_an_image_whose_pull_secret_is_missing() -> None:
    events = {"pod-0": [event("FailedToRetrieveImagePullSecret", "Unable to retrieve some image pull secrets (reg)")]}
    held = pod(containerStatuses=[waiting("ImagePullBackOff", "pull access denied")])
    reason, message = cause(job(), held, events=events)
    assert reason is R.AWAITING_SECRET
    assert "(reg)" in message
    assert "pull access denied" in message


@pytest.mark.parametrize(
    ("spec", "message", "reason"),
    [
        (env_of("secretKeyRef", "medgr2-keys"), 'secret "medgr2-keys" not found', R.AWAITING_SECRET),
        (env_of("configMapKeyRef", "settings"), 'configmap "settings" not found', R.AWAITING_SECRET),
        (env_of("secretKeyRef", "keys"), "couldn't find key GEMINI in Secret ml/keys", R.AWAITING_SECRET),
        (
            {"containers": [{"name": "main", "envFrom": [{"secretRef": {"name": "all"}}]}]},
            'secret "all" not found',
            R.AWAITING_SECRET,
        ),
        (
            {"initContainers": [{"name": "vllm", "envFrom": [{"configMapRef": {"name": "proxy"}}]}]},
            'configmap "proxy" not found',
            R.AWAITING_SECRET,
        ),
        (
            env_of("secretKeyRef", "root"),
            "container has runAsNonRoot and image will run as root-user",
            R.CONTAINER_CONFIG,
        ),
        ({}, "container has runAsNonRoot and image will run as root", R.CONTAINER_CONFIG),
    ],
)
def test_what_the_kubelet_does_not_start(spec: dict[str, Any], message: str, reason: WaitingReason) -> None:
    held = pod(spec=spec, containerStatuses=[waiting("CreateContainerConfigError", message)])
    assert cause(job(), held) == (reason, f"main: CreateContainerConfigError: {message}")


@pytest.mark.parametrize(
    ("status", "bound", "reason"),
    [
        (unscheduled("0/2 nodes are available: insufficient nvidia.com/gpu"), True, R.UNSCHEDULABLE),
        (unscheduled("pod has unbound immediate PersistentVolumeClaims"), True, R.AWAITING_VOLUME),
        (unscheduled('persistentvolumeclaim "scratch" not found'), True, R.AWAITING_VOLUME),
        (unscheduled("0/2 nodes are available: 2 node(s) did not find a volume to bind"), False, R.AWAITING_VOLUME),
        (unscheduled("Scheduling is blocked", "SchedulingGated"), True, R.SCHEDULING_GATED),
    ],
)
def test_what_has_no_node(status: dict[str, Any], bound: bool, reason: WaitingReason) -> None:
    observed = seen(job(), pod(spec={"nodeName": ""}, **status), claim_is_bound=bound)
    assert (observed.state, observed.waiting) == (JobState.QUEUED, reason)
    assert observed.waiting_message == status["conditions"][0]["message"]


def test_gates_are_named() -> None:
    gated = pod(spec={"nodeName": "", "schedulingGates": [{"name": "a.io/x"}, {"name": "b.io/y"}]})
    gated["status"] |= unscheduled("Scheduling is blocked", "SchedulingGated")
    assert cause(job(), gated) == (R.SCHEDULING_GATED, "a.io/x, b.io/y")


def test_a_pod_at_which_no_scheduler_looks() -> None:
    reason, message = cause(job(), pod(spec={"nodeName": "", "schedulerName": "volcano"}))
    assert (reason, message) == (R.UNSCHEDULABLE, "scheduler volcano has not looked at it")


MULTI_ATTACH = 'Multi-Attach error for volume "pv-1" Volume is already exclusively attached to one node'


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([event("FailedAttachVolume", MULTI_ATTACH)], R.AWAITING_VOLUME),
        ([event("FailedMount", 'MountVolume.SetUp failed for volume "nfs-data": timed out')], R.AWAITING_VOLUME),
        (
            [event("FailedMount", 'MountVolume.SetUp failed for volume "keys" : secret "hub" not found')],
            R.AWAITING_SECRET,
        ),
        ([event("FailedMount", 'references non-existent secret key "token" of hub')], R.AWAITING_SECRET),
        ([event("FailedCreatePodSandBox", "plugin type bridge failed: no addresses left")], R.CONTAINER_CREATING),
        ([event("NetworkNotReady", "cni config uninitialized")], R.CONTAINER_CREATING),
        ([event("FailedMount", "x", EARLIER), event("FailedCreatePodSandBox", "y")], R.CONTAINER_CREATING),
        ([event("Scheduled", "Successfully assigned", kind="Normal")], R.CONTAINER_CREATING),
        ([], R.CONTAINER_CREATING),
    ],
)
def test_what_its_node_does_not_bring_up(events: list[dict[str, Any]], reason: WaitingReason) -> None:
    observed = seen(job(), pod(spec=SECRET_VOLUME, **CREATING), events={"pod-0": events})
    assert observed.waiting is reason
    newest = max((e for e in events if e["type"] == "Warning"), key=lambda e: e["lastTimestamp"], default=None)
    expected = f"{newest['reason']}: {newest['message']}" if newest else "no event says why"
    assert expected in observed.waiting_message


def test_a_pod_whose_kubelet_says_nothing_at_all() -> None:
    assert cause(job(), pod()) == (R.CONTAINER_CREATING, "node n1 has not started it, and no event says why")


def test_a_model_server_that_loads() -> None:
    server = {"initContainers": [{"name": "vllm", "restartPolicy": "Always"}, {"name": "copy"}]}
    rest = {"containerStatuses": [waiting("PodInitializing")]}
    loads = pod(spec=server, initContainerStatuses=[running("vllm", started=False)], **rest)
    assert cause(job(), loads) == (R.INIT_CONTAINERS, "vllm is not ready yet")
    copies = [running("vllm", started=True), running("copy", started=True)]
    assert cause(job(), pod(spec=server, initContainerStatuses=copies, **rest)) == (
        R.INIT_CONTAINERS,
        "copy has not ended yet",
    )
    crashes = pod(initContainerStatuses=[waiting("CrashLoopBackOff", "back-off 10s", "vllm")])
    assert cause(job(), crashes) == (R.INIT_CONTAINERS, "vllm: CrashLoopBackOff: back-off 10s")


@pytest.mark.parametrize(
    "message",
    [
        'Error creating: pods "j-abc" is forbidden: exceeded quota: compute, requested: limits.cpu=2',
        'Error creating: pods "j-abc" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true',
        'Error creating: pods "j-" is forbidden: error looking up service account ml/x: serviceaccount "x" not found',
        "Error creating: admission webhook denied the request",
    ],
)
def test_a_job_that_gets_no_pods(message: str) -> None:
    events = {"job": [event("FailedCreate", "older", EARLIER), event("FailedCreate", message)]}
    assert cause(job(), events=events) == (R.PODS_NOT_CREATED, message)


def test_a_job_that_gets_too_few_pods() -> None:
    events = {"job": [event("FailedCreate", "exceeded quota")]}
    half = job(parallelism=2, completions=2)
    observed = seen(half, pod(phase="Running", containerStatuses=[running()]), events=events)
    assert (observed.state, observed.waiting) == (JobState.RUNNING, R.PODS_NOT_CREATED)
    assert observed.waiting_message == "1 of 2 pods: exceeded quota"


def test_a_job_without_pods_or_words() -> None:
    assert cause(job()) == (R.PODS_NOT_CREATED, "its Job has no pods, and no event says why")


def test_a_queue() -> None:
    quota = {"job": "couldn't assign flavors: insufficient unused quota for nvidia.com/gpu"}
    assert cause(job(suspend=True), quota=quota) == (R.AWAITING_QUOTA, quota["job"])
    assert cause(job(suspend=True)) == (R.AWAITING_QUOTA, "waiting for its queue")
    by_hand = job(suspend=True)
    by_hand["metadata"]["labels"] = {k: v for k, v in LABELS.items() if not k.startswith("kueue")}
    assert cause(by_hand) == (R.AWAITING_QUOTA, "its Job is suspended")


def test_a_sidecar_that_outlives_the_work() -> None:
    end = {"terminated": {"exitCode": 0, "startedAt": EARLIER, "finishedAt": LATER}}
    outlived = pod(phase="Running", containerStatuses=[{"name": "main", "state": end}, running("istio-proxy")])
    [fact] = observe.lasting_facts([outlived])
    observed = seen(job(), outlived, lasting={fact: 11.0})
    assert (observed.state, observed.waiting) == (JobState.RUNNING, R.SIDECAR_STILL_RUNS)
    assert observed.waiting_message == f"istio-proxy still runs; main ended with 0 at {LATER}"
    assert observe.next_outlived([outlived], {fact: 11.0}) == 10
    assert seen(job(), outlived, lasting={fact: 5.0}).waiting is None, "a pod needs a moment to end"
    assert observe.next_outlived([outlived], {fact: 5.0}) == 5
    assert observe.next_outlived([pod(phase="Running", containerStatuses=[running()])], {}) is None


def test_what_has_just_been_created_is_not_blamed() -> None:
    since = {KEY: NOW - timedelta(seconds=9)}
    for pods in ([], [pod()], [pod(**CREATING)], [pod(spec={"nodeName": ""})]):
        assert cause(job(), *pods, since=since) == (R.STARTING, "")
    assert cause(job(), pod(containerStatuses=[waiting("ErrImagePull")]), since=since)[0] is R.IMAGE_PULL
    since = {KEY: NOW - timedelta(seconds=11)}
    assert cause(job(), since=since)[0] is R.PODS_NOT_CREATED


def test_of_several_pods_it_says_how_many_wait() -> None:
    two = job(parallelism=3, completions=3)
    pods = [pod(0, "Running", containerStatuses=[running()])]
    pods += [pod(n, spec={"nodeName": ""}, **unscheduled("full")) for n in (1, 2)]
    observed = seen(two, *pods)
    assert (observed.state, observed.waiting) == (JobState.RUNNING, R.UNSCHEDULABLE)
    assert observed.waiting_message == "2 of 3 pods: full"


def test_what_works_waits_for_nothing() -> None:
    assert cause(job(), pod(phase="Running", containerStatuses=[running()])) == (None, "")


def test_events_are_asked_for_only_of_what_is_silent() -> None:
    def asked(manifest: dict[str, Any], *pods: dict[str, Any], **around: Any) -> list[str]:
        return list(uids_with_events([(KEY, manifest, list(pods))], Surroundings(NOW, **around)))

    assert asked(job()) == ["job"]
    assert asked(job(), pod(**CREATING)) == ["pod-0"]
    assert asked(job(), pod(phase="Running", containerStatuses=[running()])) == []
    assert asked(job(), pod(spec={"nodeName": ""}, **unscheduled("full"))) == [], "the pod says it"
    assert asked(job(suspend=True)) == []
    assert asked(job(), since={KEY: NOW}) == [], "too early"
    many = job(parallelism=1000, completions=1000)
    assert len(asked(many, *(pod(n, **CREATING) for n in range(1000)))) == 2


def test_every_reason_is_described() -> None:
    assert list(WAITS) == list(WaitingReason)
