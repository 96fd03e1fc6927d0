"""Each failure class, provoked on simulated nodes: what it counts against, and what people are told."""

from __future__ import annotations

import pytest

from tests.cluster.fixtures import eventually
from tests.cluster.kwok import behaviour
from tests.support.kwok_env import HOLD, World

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
    world: World, ends: dict[str, str], counts: tuple[int, int], why: str
) -> None:
    world.operator.start()
    world.apply(annotations_of={"sft": ends}, failurePolicy={"backoffSeconds": 0})
    world.wait("Complete")
    stage = world.stage("sft")
    assert stage["attempt"] == 2
    assert (stage.get("retries", 0), stage.get("infraRestarts", 0)) == counts
    if why == "OOMKilled":  # any other 137 counts the same, but its cause is another
        assert why in {reason for reason, _ in world.events()}


@pytest.mark.parametrize("code", [2, 64, 65, 78])
def test_what_cannot_be_mended_fails_the_cycle_at_once(world: World, code: int) -> None:
    world.operator.start()
    result = {"exit_code": code, "message": "items.jsonl, row 3: no answer", "reason": "DataError"}
    world.apply(annotations_of={"prepare": behaviour(exit_code=code, result=result)})
    failed = world.wait("Failed")
    assert "prepare@0" in failed["message"]
    assert "row 3: no answer" in failed["message"]
    assert len(world.created_jobs()) == 1


def test_a_sidecar_that_does_not_stay_up_is_the_programs_fault(world: World) -> None:
    world.operator.start()
    sidecar = {"name": "server", "image": "x", "restartPolicy": "Always"}
    world.apply(
        annotations_of={"sft": behaviour(attempt=1, sidecar_restarts=3, run="forever", term_exit_code=143)},
        template={"patches": [{"op": "add", "path": "/spec/template/spec/initContainers", "value": [sidecar]}]},
    )
    world.wait("Complete")
    assert (world.stage("sft")["attempt"], world.stage("sft").get("retries")) == (2, 1)


@pytest.mark.parametrize(("code", "limit"), [(1, "maxRetries"), (143, "maxInfraRestarts")])
def test_tries_are_used_up(world: World, code: int, limit: str) -> None:
    world.operator.start()
    world.apply(annotations_of={"prepare": behaviour(exit_code=code)}, failurePolicy={limit: 2, "backoffSeconds": 0})
    failed = world.wait("Failed")
    assert "prepare@0" in failed["message"]
    assert world.stage("prepare", 0)["attempt"] == 3
    assert len(world.created_jobs()) == 3


def test_a_stage_that_runs_too_long_is_tried_again(world: World) -> None:
    world.operator.start()
    limit = 20  # far longer than the next attempt takes on a busy computer
    world.apply(
        annotations_of={"sft": behaviour(attempt=1, run="forever")}, stages=[{"name": "sft", "timeoutSeconds": limit}]
    )
    world.wait("Complete")
    assert (world.stage("sft")["attempt"], world.stage("sft").get("retries")) == (2, 1)


def test_a_job_that_failed_without_a_word_is_infrastructure(world: World) -> None:
    """The Job's own deadline ends it, which somebody gave it, and its pod leaves no result."""
    world.operator.start()
    world.apply(annotations_of={"sft": behaviour(attempt=1, run="forever")})
    name = world.running("sft")["jobName"]
    world.kubectl("patch", "job", name, "--type=merge", "-p", '{"spec": {"activeDeadlineSeconds": 1}}')
    world.wait("Complete")
    assert (world.stage("sft")["attempt"], world.stage("sft").get("infraRestarts")) == (2, 1)


def test_a_deleted_job_has_no_second_writer(world: World) -> None:
    """The pod of a Job that somebody deleted still checkpoints: the next attempt waits for its end."""
    world.operator.start()
    world.apply(annotations_of={"sft": behaviour(attempt=1, run="forever", term_delay_ms=4000, term_exit_code=85)})
    name = world.running("sft")["jobName"]
    (pod,) = world.live_pods(SFT)
    world.kubectl("delete", "job", name, "--wait=false")
    eventually(lambda: world.stage("sft").get("state") == "Terminating", "its loss is seen")
    while True:
        attempt = world.stage("sft")["attempt"]  # first: as soon as the pod has ended there may be another
        if pod not in world.live_pods(SFT):
            break
        assert attempt == 1
    world.wait("Complete")
    assert world.stage("sft")["attempt"] == 2


def test_a_deleted_pod_is_infrastructure(world: World) -> None:
    world.operator.start()
    world.apply(annotations_of={"sft": behaviour(attempt=1, run="forever", term_exit_code=143)})
    world.running("sft")
    world.kubectl("delete", "pod", *world.live_pods(), "--wait=false")
    world.wait("Complete")
    assert (world.stage("sft")["attempt"], world.stage("sft").get("infraRestarts")) == (2, 1)


@pytest.mark.parametrize(("code", "restarts"), [(85, 0), (1, 1)])
def test_a_drained_nodes_pod_goes_on_elsewhere(world: World, code: int, restarts: int) -> None:
    """Evicted through the API, as `kubectl drain` does: a checkpoint is free, and no code makes it the program's fault.
    The pod is held until its last words are read; else that is a matter of milliseconds."""
    world.operator.start()
    stops = behaviour(attempt=1, run="forever", term_delay_ms=500, term_exit_code=code, checkpoint_step=5)
    world.apply(annotations_of={"sft": stops}, stages=[{"name": "sft", "patches": [HOLD]}])
    world.running("sft")
    (pod,) = world.live_pods(SFT)
    world.evict(pod)
    world.wait("Complete")
    stage = world.stage("sft")
    counted = (stage["attempt"], stage.get("retries", 0), stage.get("infraRestarts", 0), stage["checkpointStep"])
    for found in world.kubectl.get("pods", "-l", SFT)["items"]:
        world.release(found["metadata"]["name"])
    assert counted == (2, 0, restarts, 5)


def test_an_image_that_cannot_be_pulled_is_told(world: World) -> None:
    world.operator.start()
    world.apply(annotations_of={"prepare": behaviour(waiting="ImagePullBackOff")})
    eventually(lambda: world.condition("Progressing").get("reason") == "ImagePull", "the cause", 60)
    assert "prepare@0" in world.condition("Progressing")["message"]


def test_a_stage_that_fits_nowhere_is_told(world: World) -> None:
    world.operator.start()
    world.apply(stages=[{"name": "sft", "resources": {"limits": {"nvidia.com/gpu": 5000}}}])
    eventually(lambda: world.condition("Progressing").get("reason") == "Unschedulable", "the cause", 90)
    assert "nvidia.com/gpu" in world.condition("Progressing")["message"]


def test_a_volume_that_is_not_bound_is_told(world: World) -> None:
    world.operator.start()
    spec = {"accessModes": ["ReadWriteMany"], "storageClassName": "", "resources": {"requests": {"storage": "1Gi"}}}
    world.kubectl.apply(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "unbound"}, "spec": spec}
    )
    world.apply(workspace={"persistentVolumeClaim": {"claimName": "unbound"}})
    eventually(lambda: world.condition("Progressing").get("reason") == "UnboundVolume", "the cause", 60)
    assert "unbound immediate PersistentVolumeClaims" in world.condition("Progressing")["message"]


def test_a_stage_that_is_never_scheduled_fails_with_its_cause(world: World) -> None:
    bound = "--for=jsonpath={.status.phase}=Bound"  # or that is the cause for a second
    world.kubectl("wait", bound, "pvc/medgr2-data", "--timeout=240s")
    world.operator.start()
    gpus = {"limits": {"nvidia.com/gpu": 5000}}
    world.apply(stages=[{"name": "prepare", "resources": gpus, "pendingDeadlineSeconds": 3}])
    failed = world.wait("Failed")
    assert "not scheduled in 3 s: Unschedulable" in failed["message"]
    assert "nvidia.com/gpu" in failed["message"]
    assert len(world.created_jobs()) == 1


def test_a_success_that_cannot_be_read_is_read_from_its_manifest(world: World) -> None:
    """The collecting attempt is a CPU pod, never a second run."""
    world.operator.start()
    world.apply(annotations_of={"sft": behaviour(attempt=1, message="gone")})
    world.wait("Complete")
    stage = world.stage("sft")
    assert (stage["attempt"], stage.get("retries", 0), stage["collect"]) == (2, 0, True)


def test_a_success_whose_pod_is_gone_is_read_from_its_manifest(world: World) -> None:
    """It ended while the operator was away, and somebody cleaned up."""
    world.operator.start()
    world.apply(
        annotations_of={"sft": behaviour(attempt=1, run="forever")},
        stages=[{"name": "sft", "resources": {"limits": {"nvidia.com/gpu": 1}}}],
    )
    name = world.running("sft")["jobName"]
    world.operator.kill()
    world.finish("sft")
    world.kubectl("wait", "--for=condition=Complete", f"job/{name}", "--timeout=240s")
    world.kubectl("delete", "pods", "-l", SFT)
    world.operator.start()
    world.wait("Complete")
    stage = world.stage("sft")
    assert (stage["attempt"], stage.get("retries", 0), stage.get("infraRestarts", 0), stage["collect"]) == (
        2,
        0,
        0,
        True,
    )
    (container,) = world.kubectl.get("job", stage["jobName"])["spec"]["template"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in container["resources"].get("limits", {}), "a GPU to read a file"
