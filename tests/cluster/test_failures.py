"""Each failure class, provoked on simulated nodes: what it counts against, and what people are told."""

from __future__ import annotations

import json

import kubernetes.client
import pytest

from tests.cluster.fixtures import eventually
from tests.cluster.kwok import NODES, behaviour
from tests.support.kwok_env import HOLD, KwokEnv

pytestmark = pytest.mark.cluster

SFT = "medgr2.io/stage=sft"


@pytest.mark.parametrize(
    ("ends", "counts", "why"),
    [
        (behaviour(attempt=1, exit_code=1), (1, 0), "application"),
        (behaviour(attempt=1, exit_code=75), (1, 0), "application"),
        (behaviour(attempt=1, exit_code=137, reason="OOMKilled"), (1, 0), "OOMKilled"),
        (behaviour(attempt=1, exit_code=85, checkpoint_step=5), (0, 0), "progress"),
        (behaviour(attempt=1, exit_code=85), (0, 1), "no progress"),
        (behaviour(attempt=1, exit_code=143), (0, 1), "SIGTERM"),
        (behaviour(attempt=1, exit_code=137, pod_reason="Evicted"), (0, 1), "eviction"),
        (behaviour(attempt=1, exit_code=1, result={"reason": "RendezvousTimeout"}), (0, 1), "rendezvous"),
    ],
)
def test_a_failure_counts_where_it_belongs_and_the_stage_starts_again(
    env: KwokEnv, ends: dict[str, str], counts: tuple[int, int], why: str
) -> None:
    env.operator.start()
    env.apply(annotations_of={"sft": ends}, failurePolicy={"backoffSeconds": 0})
    env.wait("Complete")
    stage = env.stage("sft")
    assert stage["attempt"] == 2
    assert (stage.get("retries", 0), stage.get("infraRestarts", 0)) == counts
    if why == "OOMKilled":  # any other 137 counts the same, but its cause is another
        assert why in {reason for reason, _ in env.events()}


@pytest.mark.parametrize("code", [2, 64, 65, 78])
def test_what_cannot_be_mended_fails_the_cycle_at_once(env: KwokEnv, code: int) -> None:
    env.operator.start()
    result = {"exit_code": code, "message": "items.jsonl, row 3: no answer", "reason": "DataError"}
    env.apply(annotations_of={"prepare": behaviour(exit_code=code, result=result)})
    failed = env.wait("Failed")
    assert "prepare@0" in failed["message"]
    assert "row 3: no answer" in failed["message"]
    assert len(env.created_jobs()) == 1


def test_a_sidecar_that_does_not_stay_up_is_the_programs_fault(env: KwokEnv) -> None:
    env.operator.start()
    sidecar = {"name": "server", "image": "x", "restartPolicy": "Always"}
    env.apply(
        annotations_of={"sft": behaviour(attempt=1, sidecar_restarts=3, run="forever", term_exit_code=143)},
        template={"patches": [{"op": "add", "path": "/spec/template/spec/initContainers", "value": [sidecar]}]},
    )
    env.wait("Complete")
    assert (env.stage("sft")["attempt"], env.stage("sft").get("retries")) == (2, 1)


@pytest.mark.parametrize(("code", "limit"), [(1, "maxRetries"), (143, "maxInfraRestarts")])
def test_tries_are_used_up(env: KwokEnv, code: int, limit: str) -> None:
    env.operator.start()
    env.apply(annotations_of={"prepare": behaviour(exit_code=code)}, failurePolicy={limit: 2, "backoffSeconds": 0})
    failed = env.wait("Failed")
    assert "prepare@0" in failed["message"]
    assert env.stage("prepare", 0)["attempt"] == 3
    assert len(env.created_jobs()) == 3


def test_a_stage_that_runs_too_long_is_tried_again(env: KwokEnv) -> None:
    env.operator.start()
    limit = 20  # far longer than the next attempt takes on a busy computer
    env.apply(
        annotations_of={"sft": behaviour(attempt=1, run="forever")}, stages=[{"name": "sft", "timeoutSeconds": limit}]
    )
    env.wait("Complete")
    assert (env.stage("sft")["attempt"], env.stage("sft").get("retries")) == (2, 1)


def test_a_job_that_failed_without_a_word_is_infrastructure(env: KwokEnv) -> None:
    """The Job's own deadline ends it, which somebody gave it, and its pod leaves no result."""
    env.operator.start()
    env.apply(annotations_of={"sft": behaviour(attempt=1, run="forever")})
    name = env.running("sft")["jobName"]
    env.kubectl("patch", "job", name, "--type=merge", "-p", '{"spec": {"activeDeadlineSeconds": 1}}')
    env.wait("Complete")
    assert (env.stage("sft")["attempt"], env.stage("sft").get("infraRestarts")) == (2, 1)


def test_a_deleted_job_has_no_second_writer(env: KwokEnv) -> None:
    """The pod of a Job that somebody deleted still checkpoints: the next attempt waits for its end."""
    env.operator.start()
    env.apply(annotations_of={"sft": behaviour(attempt=1, run="forever", term_delay_ms=4000, term_exit_code=85)})
    name = env.running("sft")["jobName"]
    (pod,) = env.live_pods(SFT)
    env.kubectl("delete", "job", name, "--wait=false")
    eventually(lambda: env.stage("sft").get("state") == "Terminating", "its loss is seen")
    while True:
        attempt = env.stage("sft")["attempt"]  # first: as soon as the pod has ended there may be another
        if pod not in env.live_pods(SFT):
            break
        assert attempt == 1
    env.wait("Complete")
    assert env.stage("sft")["attempt"] == 2


def test_a_deleted_pod_is_infrastructure(env: KwokEnv) -> None:
    env.operator.start()
    env.apply(annotations_of={"sft": behaviour(attempt=1, run="forever", term_exit_code=143)})
    env.running("sft")
    env.kubectl("delete", "pod", *env.live_pods(), "--wait=false")
    env.wait("Complete")
    assert (env.stage("sft")["attempt"], env.stage("sft").get("infraRestarts")) == (2, 1)


@pytest.mark.parametrize(("code", "restarts"), [(85, 0), (1, 1)])
def test_a_drained_nodes_pod_goes_on_elsewhere(env: KwokEnv, code: int, restarts: int) -> None:
    """Evicted through the API, as `kubectl drain` does: a checkpoint is free, and no code makes it the program's fault.
    The pod is held until its last words are read; else that is a matter of milliseconds."""
    env.operator.start()
    stops = behaviour(attempt=1, run="forever", term_delay_ms=500, term_exit_code=code, checkpoint_step=5)
    env.apply(annotations_of={"sft": stops}, stages=[{"name": "sft", "patches": [HOLD]}])
    env.running("sft")
    (pod,) = env.live_pods(SFT)
    env.evict(pod)
    env.wait("Complete")
    stage = env.stage("sft")
    counted = (stage["attempt"], stage.get("retries", 0), stage.get("infraRestarts", 0), stage["checkpointStep"])
    for pod in env.kubectl.get("pods", "-l", SFT)["items"]:
        env.release(pod["metadata"]["name"])
    assert counted == (2, 0, restarts, 5)


def test_an_image_that_cannot_be_pulled_is_told(env: KwokEnv) -> None:
    env.operator.start()
    env.apply(annotations_of={"prepare": behaviour(waiting="ImagePullBackOff")})
    env.told("ImagePull", "prepare@0")


def test_a_stage_that_fits_nowhere_is_told(env: KwokEnv) -> None:
    env.operator.start()
    env.apply(stages=[{"name": "sft", "resources": {"limits": {"nvidia.com/gpu": 5000}}}])
    env.told("Unschedulable", "nvidia.com/gpu", seconds=90)


def test_a_volume_that_is_not_bound_is_told(env: KwokEnv) -> None:
    env.operator.start()
    spec = {"accessModes": ["ReadWriteMany"], "storageClassName": "", "resources": {"requests": {"storage": "1Gi"}}}
    env.kubectl.apply(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "unbound"}, "spec": spec}
    )
    env.apply(workspace={"persistentVolumeClaim": {"claimName": "unbound"}})
    env.told("AwaitingVolume", "unbound immediate PersistentVolumeClaims")


def test_a_stage_that_is_never_scheduled_fails_with_its_cause(env: KwokEnv) -> None:
    bound = "--for=jsonpath={.status.phase}=Bound"  # or that is the cause for a second
    env.kubectl("wait", bound, "pvc/medgr2-data", "--timeout=240s")
    env.operator.start()
    gpus = {"limits": {"nvidia.com/gpu": 5000}}
    env.apply(stages=[{"name": "prepare", "resources": gpus, "pendingDeadlineSeconds": 3}])
    failed = env.wait("Failed")
    assert "not started in 3 s: Unschedulable" in failed["message"]
    assert "nvidia.com/gpu" in failed["message"]
    assert len(env.created_jobs()) == 1


def test_a_success_that_cannot_be_read_is_read_from_its_manifest(env: KwokEnv) -> None:
    """The collecting attempt is a CPU pod, never a second run."""
    env.operator.start()
    env.apply(annotations_of={"sft": behaviour(attempt=1, message="gone")})
    env.wait("Complete")
    stage = env.stage("sft")
    assert (stage["attempt"], stage.get("retries", 0), stage["collect"]) == (2, 0, True)


def test_a_success_whose_pod_is_gone_is_read_from_its_manifest(env: KwokEnv) -> None:
    """It ended while the operator was away, and somebody cleaned up."""
    env.operator.start()
    env.apply(
        annotations_of={"sft": behaviour(attempt=1, run="forever")},
        stages=[{"name": "sft", "resources": {"limits": {"nvidia.com/gpu": 1}}}],
    )
    name = env.running("sft")["jobName"]
    env.operator.kill()
    env.finish("sft")
    env.kubectl("wait", "--for=condition=Complete", f"job/{name}", "--timeout=240s")
    env.kubectl("delete", "pods", "-l", SFT)
    env.operator.start()
    env.wait("Complete")
    stage = env.stage("sft")
    assert (stage["attempt"], stage.get("retries", 0), stage.get("infraRestarts", 0), stage["collect"]) == (
        2,
        0,
        0,
        True,
    )
    (container,) = env.kubectl.get("job", stage["jobName"])["spec"]["template"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in container["resources"].get("limits", {}), "a GPU to read a file"


def test_a_volume_that_is_attached_elsewhere_is_told(env: KwokEnv) -> None:
    """A volume of one node at a time, which somebody else's pod has on the other node."""
    core = kubernetes.client.CoreV1Api(env.control_plane.client())
    name, csi = f"{env.namespace}-disk", {"driver": "disk.csi.example", "volumeHandle": env.namespace}
    common = {"accessModes": ["ReadWriteOnce"], "storageClassName": ""}
    volume = {**common, "capacity": {"storage": "1Gi"}, "csi": csi}
    claim = {**common, "resources": {"requests": {"storage": "1Gi"}}, "volumeName": name}
    core.create_persistent_volume({"metadata": {"name": name}, "spec": volume})
    core.create_namespaced_persistent_volume_claim(env.namespace, {"metadata": {"name": "disk"}, "spec": claim})
    first, second = NODES
    mounts = {"name": "disk", "persistentVolumeClaim": {"claimName": "disk"}}
    other = {"containers": [{"name": "main", "image": "x"}], "volumes": [mounts], "nodeName": first}
    env.kubectl.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "other"}, "spec": other})

    def attachment() -> str | None:
        found = env.kubectl.get("volumeattachments")["items"]
        return next((a["metadata"]["name"] for a in found if a["spec"]["source"]["persistentVolumeName"] == name), None)

    attached = json.dumps({"status": {"attached": True}})
    which = ("volumeattachment", eventually(attachment, "somebody wants it"), "--subresource=status")
    env.kubectl("patch", *which, "--type=merge", "-p", attached)
    eventually(lambda: env.kubectl.get("node", first)["status"].get("volumesAttached"), "it is attached")
    env.operator.start()
    patch = {"op": "add", "path": "/spec/template/spec/volumes/-", "value": mounts}
    held = behaviour(waiting="ContainerCreating")
    there = {"kubernetes.io/hostname": second}
    env.apply(annotations_of={"prepare": held}, template={"patches": [patch], "nodeSelector": there})
    env.told("AwaitingVolume", "Multi-Attach error")
    core.delete_persistent_volume(name)
