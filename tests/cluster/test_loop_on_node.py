"""The loop on a real kubelet: Helm installs the operator, a user applies a cycle, and containers do the work."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.cluster.fixtures import eventually
from tests.cluster.lab import HOME, Lab, operator_pods
from tests.e2e.loop_world import CYCLE, Loop

pytestmark = pytest.mark.cluster

CLAIM = {
    "volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}
}
GRPO_STEPS = 60


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """The small cycle by `medgr2 run` on this computer, one thread."""
    loop = Loop(tmp_path_factory.mktemp("local"), small())
    code, output = loop.run()
    assert code == 0, output
    return loop


def small() -> dict[str, Any]:
    """A cycle with every stage in it, a few steps each, GRPO long enough to be interrupted."""
    document = copy.deepcopy(CYCLE)
    spec = document["spec"]
    spec["workspace"] = CLAIM
    spec["policy"]["grpo"]["trainer"]["max_steps"] = GRPO_STEPS
    spec["failurePolicy"] = {"backoffSeconds": 0}
    # two stages at a time have to fit on a node of two CPUs, beside its own processes
    spec["stages"] = [
        {"name": name, "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}}, **more}
        for name, more in _STAGES.items()
    ]
    return document


_STAGES: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("prepare", "reward", "evaluate", "curate", "sft", "grpo", "preferences", "report")},
    "generate": {"shards": 2},
    "score": {"shards": 2},
}


@pytest.mark.lab("lab-loop")
def test_the_loop_survives_people_and_publishes_the_bytes_of_a_local_run(lab: Lab, local: Loop) -> None:
    """Suspended in the middle of GRPO; then its pod is deleted, and every replica of the operator; then a restart."""
    lab.kubectl.apply(small())
    lab.until_stage("loop", "grpo", "Running", 300)
    eventually(lambda: max(checkpoints(lab), default=0) >= 3, "GRPO has written its third checkpoint")

    lab.patch("loop", {"suspend": True})
    lab.wait("loop", "Suspended", 120)
    eventually(lambda: not lab.running_pods(), "every pod is gone")
    assert lab.status("loop")["phase"] == "Suspended"
    written = checkpoints(lab)
    lab.patch("loop", {"suspend": False})
    more = eventually(lambda: checkpoints(lab) - written, "it writes further checkpoints", 120)
    assert min(more) > max(written), "it goes on from the last one"

    (pod,) = [name for name in lab.running_pods() if "-grpo-" in name]
    lab.kubectl("delete", "pod", pod, "--wait=false")
    replicas = operator_pods(lab.node)
    lab.node.control_plane.kubectl("delete", "pods", "-n", HOME, "--grace-period=0", "--force", *replicas)

    lab.wait("loop", "Complete", 600)
    assert lab.stage("loop", "grpo")["attempt"] > 2, "suspended once, deleted once"
    assert lab.digests("loop") == local.digests()
    usage = lab.status("loop")["usage"]
    assert usage.get("appRetries", 0) == 0

    before = {(s["name"], s["iteration"]): s["jobUID"] for s in lab.status("loop")["stages"]}
    lab.patch("loop", {"restartFrom": {"iteration": 1, "stage": "preferences", "token": "again"}})
    eventually(lambda: lab.stage("loop", "preferences").get("jobUID") != before["preferences", 1], "it starts again")
    lab.wait("loop", "Complete", 300)
    after = {(s["name"], s["iteration"]): s["jobUID"] for s in lab.status("loop")["stages"]}
    assert {key for key in after if after[key] != before[key]} == {("preferences", 1), ("reward", 1), ("report", 1)}
    assert lab.digests("loop") == local.digests()

    lab.kubectl("delete", "medgr2cycle", "loop")
    eventually(lambda: not lab.pods(), "Jobs and pods go with the cycle")
    assert lab.kubectl("get", "jobs,services", "-o", "name") == ""
    assert "persistentvolumeclaim/" in lab.kubectl("get", "pvc", "-o", "name")  # whenDeleted: Retain


def checkpoints(lab: Lab) -> set[int]:
    """Steps of GRPO's checkpoints on the volume; after each step there is one, and the last two are kept."""
    found = lab.folder("loop").glob("**/grpo/**/checkpoint-*")
    return {int(path.name.split("-")[1]) for path in found if path.name.split("-")[1].isdigit()}


@pytest.mark.lab("lab-pair")
def test_two_pods_train_together(lab: Lab) -> None:
    """torchrun over two pods, DDP over gloo; they find each other by the names of the headless Service."""
    document = small()
    document["metadata"]["name"] = "pair"
    spec = document["spec"]
    del spec["policy"]["grpo"], spec["policy"]["preferences"]
    wanted = {stage["name"]: stage for stage in spec["stages"]}
    wanted["sft"]["numNodes"] = 2
    for name in ("grpo", "preferences", "report"):
        wanted[name] = {"name": name, "enabled": False}
    spec["stages"] = list(wanted.values())
    lab.kubectl.apply(document)

    service = dict(eventually(lambda: lab.headless_service(), "the Service", 300))
    assert service["spec"]["publishNotReadyAddresses"]
    lab.wait("pair", "Complete", 600)
    manifest = lab.manifest("pair", "sft")
    assert manifest["counters"]["steps"] == 8
    assert manifest["counters"]["train_loss"] < manifest["counters"]["first_loss"]
    pods = [name for name in lab.pods() if "-sft-" in name]
    assert len(pods) == 2, pods
    logs = [lab.kubectl("logs", name) for name in pods]
    assert all(log.strip() for log in logs)
    print(*logs, sep="\n---\n")
