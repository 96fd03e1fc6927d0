"""Level 2: simulated pods do what their annotations say, and real controllers draw the usual conclusions."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from medgr2_api.stage_contract import REQUEST_ENV, CycleRef, StageRequest, StageResult
from tests.cluster.control_plane import ControlPlane
from tests.cluster.fixtures import Kubectl, eventually
from tests.cluster.kwok import GPUS, NODES, Kwok, behaviour, tolerates

pytestmark = pytest.mark.cluster

Document = dict[str, Any]


def pod(name: str, **fields: Any) -> Document:
    """A pod of one container `main`; `annotations` go into its metadata, the rest into its spec."""
    annotations = fields.pop("annotations", {})
    env = fields.pop("env", [])
    container = {"name": "main", "image": "nothing", "env": env, "resources": {"limits": {"nvidia.com/gpu": 8}}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"restartPolicy": "Never", "containers": [container], **fields},
    }


def job(name: str, annotations: dict[str, str] | None = None, **fields: Any) -> Document:
    template = pod("unused", annotations=annotations or {})
    del template["apiVersion"], template["kind"], template["metadata"]["name"]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": template, **fields},
    }


def request(attempt: int = 1) -> list[Document]:
    """A StageRequest as the operator renders it: kubelet would expand `$(…)`, so `$` is doubled."""
    asked = StageRequest(
        cycle=CycleRef(name="c", uid="u"),
        iteration=1,
        stage="sft",
        attempt=attempt,
        input_hash="abc",
        parameters={"price": "$5"},
    )
    text = asked.model_dump_json(by_alias=True).replace("$", "$$")
    return [
        {"name": "OTHER", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": REQUEST_ENV, "value": text},
    ]


class Pods:
    """Waits for pods."""

    def __init__(self, kubectl: Kubectl) -> None:
        self._kubectl = kubectl

    def phase(self, name: str, *phases: str) -> Document:
        def reached() -> Document | None:
            pod = self._kubectl.get("pod", name)
            return pod if pod["status"].get("phase") in phases else None

        return eventually(reached, f"pod {name} is {' or '.join(phases)}")

    def ended(self, name: str) -> Document:
        """The `terminated` state of its container."""
        pod = self.phase(name, "Succeeded", "Failed")
        state: Document = pod["status"]["containerStatuses"][0]["state"]["terminated"]
        return state

    def hold(self, name: str) -> None:
        """Keeps the pod when it is deleted, as the Job controller does, so that its end can be read."""
        self._kubectl("patch", "pod", name, "--type=merge", "-p", '{"metadata":{"finalizers":["medgr2.io/test"]}}')

    def release(self, name: str) -> None:
        """Lets a held pod go; returns when it is gone."""
        self._kubectl("patch", "pod", name, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
        self.gone(name)

    def gone(self, name: str) -> None:
        eventually(lambda: not self._kubectl("get", "pod", name, "--ignore-not-found"), f"pod {name} is gone")


@pytest.fixture
def pods(kwok_cluster: Kwok, kubectl: Kubectl) -> Pods:
    return Pods(kubectl)


def test_nodes_have_gpus(control_plane: ControlPlane, kwok_cluster: Kwok) -> None:
    # other tests may have added nodes of their own at the moment
    nodes = json.loads(control_plane.kubectl("get", "nodes", *NODES, "-o", "json"))["items"]
    assert len(nodes) == len(NODES)
    assert all(node["status"]["allocatable"]["nvidia.com/gpu"] == f"{GPUS // 1000}k" for node in nodes)


def test_a_pod_succeeds_by_default_with_a_stage_result(pods: Pods, kubectl: Kubectl) -> None:
    kubectl.apply(pod("plain"), pod("asked", env=request()))
    ended = pods.ended("plain")
    assert (ended["exitCode"], ended["reason"]) == (0, "Completed")
    result = StageResult.model_validate_json(ended["message"])
    assert (result.exit_code, result.reason, result.input_hash, result.checkpoint_step) == (0, "Succeeded", "", -1)
    result = StageResult.model_validate_json(pods.ended("asked")["message"])
    assert result.input_hash == "abc"
    assert len(result.output_digest) == 64


def test_a_pod_ends_as_its_annotations_say(pods: Pods, kubectl: Kubectl) -> None:
    message = 'any "text",\n  {{ not: a template }} \\ $$ π'
    kubectl.apply(
        pod("said", annotations=behaviour(exit_code=65, message=message)),
        pod("silent", annotations=behaviour(exit_code=137, reason="OOMKilled", message="")),
        pod("result", annotations=behaviour(exit_code=85, checkpoint_step=7, result={"metrics": {"loss": 0.5}})),
    )
    ended = pods.ended("said")
    assert (ended["exitCode"], ended["reason"], ended["message"]) == (65, "Error", message)
    ended = pods.ended("silent")
    assert (ended["exitCode"], ended["reason"], "message" in ended) == (137, "OOMKilled", False)
    result = StageResult.model_validate_json(pods.ended("result")["message"])
    assert (result.exit_code, result.reason, result.checkpoint_step) == (85, "Checkpointed", 7)
    assert result.metrics == {"loss": 0.5}


def test_behaviour_of_one_attempt(pods: Pods, kubectl: Kubectl) -> None:
    annotations = behaviour(exit_code=75, delay_ms=600_000)
    for attempt in (1, 2, 3):
        annotations |= behaviour(attempt, delay_ms=attempt)
    annotations |= behaviour(2, exit_code=0)
    kubectl.apply(*(pod(f"attempt-{attempt}", annotations=annotations, env=request(attempt)) for attempt in (1, 2, 3)))
    assert [pods.ended(f"attempt-{attempt}")["exitCode"] for attempt in (1, 2, 3)] == [75, 0, 75]


def test_the_delay_is_kept(pods: Pods, kubectl: Kubectl) -> None:
    kubectl.apply(pod("slow", annotations=behaviour(delay_ms=3000)))
    ended = pods.ended("slow")
    began, finished = (time.strptime(ended[key], "%Y-%m-%dT%H:%M:%SZ") for key in ("startedAt", "finishedAt"))
    assert time.mktime(finished) - time.mktime(began) >= 2


def test_a_pod_can_run_until_it_is_deleted(pods: Pods, kubectl: Kubectl) -> None:
    kubectl.apply(
        pod("forever", annotations=behaviour(run="forever")),
        pod("server", restartPolicy="Always"),
    )
    for name in ("forever", "server"):
        status = pods.phase(name, "Running")["status"]
        assert status["podIP"].startswith("127.64.")
        assert status["containerStatuses"][0]["ready"] is True
    time.sleep(1)  # well beyond the default delay
    for name in ("forever", "server"):
        assert pods.phase(name, "Running", "Succeeded", "Failed")["status"]["phase"] == "Running"
        kubectl("delete", "pod", name, "--wait=false")
        pods.gone(name)


def test_deletion_gives_a_pod_time_to_checkpoint(pods: Pods, kubectl: Kubectl) -> None:
    annotations = behaviour(run="forever", term_delay_ms=1500, term_exit_code=85, checkpoint_step=3)
    kubectl.apply(pod("stopped", annotations=annotations))
    pods.phase("stopped", "Running")
    pods.hold("stopped")
    asked = time.monotonic()
    kubectl("delete", "pod", "stopped", "--wait=false")
    ended = pods.ended("stopped")
    assert time.monotonic() - asked >= 1.4
    assert (ended["exitCode"], StageResult.model_validate_json(ended["message"]).checkpoint_step) == (85, 3)
    pods.release("stopped")


def test_an_image_that_cannot_be_pulled(pods: Pods, kubectl: Kubectl) -> None:
    kubectl.apply(pod("stuck", annotations=behaviour(waiting="ImagePullBackOff")))

    def reason() -> str | None:
        statuses = kubectl.get("pod", "stuck")["status"].get("containerStatuses", [])
        return next((status["state"]["waiting"]["reason"] for status in statuses), None)

    assert eventually(reason, "the pod waits") == "ImagePullBackOff"
    assert kubectl.get("pod", "stuck")["status"]["phase"] == "Pending"
    pods.hold("stuck")
    kubectl("delete", "pod", "stuck", "--wait=false")
    ended = pods.ended("stuck")
    assert (ended["exitCode"], ended["reason"], "message" in ended) == (137, "ContainerStatusUnknown", False)
    pods.release("stuck")


def test_a_sidecar_that_crashes_again_and_again(pods: Pods, kubectl: Kubectl) -> None:
    init = [{"name": "fetch", "image": "nothing"}, {"name": "server", "image": "nothing", "restartPolicy": "Always"}]
    kubectl.apply(pod("served", initContainers=init, annotations=behaviour(sidecar_restarts=3)))

    def statuses() -> list[Document]:
        statuses_: list[Document] = kubectl.get("pod", "served")["status"].get("initContainerStatuses", [])
        return statuses_

    eventually(lambda: [status["restartCount"] for status in statuses()] == [0, 3], "three restarts of the sidecar")
    fetch, server = statuses()
    assert fetch["state"]["terminated"]["exitCode"] == 0
    assert server["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    assert kubectl.get("pod", "served")["status"]["phase"] == "Running"


def test_a_job_completes_and_is_created_once(
    control_plane: ControlPlane, pods: Pods, namespace: str, kubectl: Kubectl
) -> None:
    kubectl.apply(job("stage"))
    kubectl("wait", "--for=condition=Complete", "job/stage", "--timeout=240s")
    assert kubectl.get("job", "stage")["status"]["succeeded"] == 1
    assert control_plane.audit.created("jobs", namespace) == ["stage"]


def test_a_job_fails_as_its_policy_says(pods: Pods, kubectl: Kubectl) -> None:
    exits = {"containerName": "main", "operator": "In", "values": [65]}
    policy = {"rules": [{"action": "FailJob", "onExitCodes": exits}]}
    kubectl.apply(job("bad", behaviour(exit_code=65), podFailurePolicy=policy))
    kubectl("wait", "--for=condition=Failed", "job/bad", "--timeout=240s")
    (failed,) = [c for c in kubectl.get("job", "bad")["status"]["conditions"] if c["type"] == "Failed"]
    assert failed["reason"] == "PodFailurePolicy"
    assert "exit code 65" in failed["message"]


def test_an_evicted_pod_is_a_disruption(pods: Pods, kubectl: Kubectl) -> None:
    policy = {"rules": [{"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]}
    kubectl.apply(job("evicted", behaviour(exit_code=137, pod_reason="Evicted"), podFailurePolicy=policy))
    kubectl("wait", "--for=condition=Failed", "job/evicted", "--timeout=240s")
    (failed,) = [c for c in kubectl.get("job", "evicted")["status"]["conditions"] if c["type"] == "Failed"]
    assert "DisruptionTarget" in failed["message"]


def test_a_deleted_job_lets_its_pod_end(pods: Pods, kubectl: Kubectl) -> None:
    kubectl.apply(job("deleted", behaviour(run="forever", term_delay_ms=300)))
    eventually(lambda: kubectl.get("job", "deleted")["status"].get("active"), "a pod of the Job")
    kubectl("delete", "job", "deleted", "--cascade=background")
    eventually(lambda: not kubectl.get("pods")["items"], "the pod is gone")


def test_a_node_that_nobody_hears_of(kwok_cluster: Kwok, pods: Pods, kubectl: Kubectl) -> None:
    kwok_cluster.add_node("kwok-lost")
    try:
        eventually(lambda: kwok_cluster.is_ready("kwok-lost"), "the node is ready")
        annotations = behaviour(run="forever", term_delay_ms=0)
        where = {"nodeSelector": {"kubernetes.io/hostname": "kwok-lost"}, "tolerations": [tolerates("kwok-lost")]}
        kubectl.apply(pod("lost", annotations=annotations, **where))
        pods.phase("lost", "Running")
        kwok_cluster.unreachable("kwok-lost")

        def terminating() -> bool:
            return "deletionTimestamp" in kubectl.get("pod", "lost")["metadata"]

        eventually(terminating, "the pod is deleted")
        time.sleep(1)
        assert kubectl.get("pod", "lost")["status"]["phase"] == "Running"  # nobody can say how it ended
        conditions = {c["type"]: c["status"] for c in kubectl.get("pod", "lost")["status"]["conditions"]}
        assert conditions["DisruptionTarget"] == "True"
        kwok_cluster.reachable("kwok-lost")
        pods.gone("lost")
    finally:
        kwok_cluster.remove_node("kwok-lost")


def test_unknown_behaviour_is_refused() -> None:
    with pytest.raises(ValueError, match="no such behaviour: exitcode; known are checkpoint-step"):
        behaviour(exitcode=1)
