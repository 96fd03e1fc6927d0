"""What README promises, on a real kubelet: Helm installs the operator, kubectl applies the quickstart, containers do
the work, and the bytes are a laptop's.

The other cycles use the quickstart's volume, and what is equal in them is reused: each runs only what it is about. (By
itself each of these tests does the whole.)
"""

from __future__ import annotations

import copy
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster import serving
from tests.cluster.fixtures import Document, eventually
from tests.support.loop_fixtures import CYCLE, Loop
from tests.support.node_env import HOME, NodeEnv, operator_pods

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart-cluster.yaml"
#: Runs the file as it is: twice the work of `make demo`, too long for every day.
FULL_SIZE = os.environ.get("MEDGR2_TEST_FULL_SIZE") == "1"
CLAIM = "quickstart-workspace"
#: Long enough to be interrupted.
GRPO_STEPS = 24
STEPS, CANDIDATES = 6, 6
#: Two pods at a time have to fit on a node of two CPUs, beside its own processes.
LITTLE = {"requests": {"cpu": "100m", "memory": "512Mi"}}


def quickstart() -> Document:
    """The file's cycle, with fewer images and steps unless `FULL_SIZE`; its resources and its volume are the file's."""
    document: Document = yaml.safe_load(QUICKSTART.read_text())
    if FULL_SIZE:
        return document
    spec, small = document["spec"], copy.deepcopy(CYCLE["spec"])
    for item in (*spec["data"]["sources"], *spec["data"]["benchmarks"]):
        item["phantom"]["images"] = 16
    spec["generator"] |= {"candidates": 48, "questionsPerImage": 3}
    for name in ("curation", "stages"):
        spec[name] = small[name]
    for name in ("rewardModel", "policy"):
        spec[name] |= small[name]
    spec["policy"]["grpo"]["trainer"]["max_steps"] = GRPO_STEPS
    return document


def variant(name: str, changes: dict[str, Document]) -> Document:
    """A cycle of one round in the quickstart's volume, with these things said of its stages."""
    document = quickstart()
    document["metadata"]["name"] = name
    spec = document["spec"]
    spec |= {"iterations": 1, "workspace": {"persistentVolumeClaim": {"claimName": CLAIM}}}
    stages: dict[str, Any] = {stage["name"]: stage for stage in spec.get("stages", [])}
    for stage in ("prepare", "reward", *changes):
        stages[stage] = stages.get(stage, {"name": stage}) | {"resources": LITTLE} | changes.get(stage, {})
    spec["stages"] = list(stages.values())
    return document


@pytest.fixture
def local(tmp_path: Path) -> Iterator[tuple[Loop, subprocess.Popen[str]]]:
    """`medgr2 run` of the same, on this computer, one thread: it runs while the cluster does."""
    loop = Loop(tmp_path, quickstart())
    process = loop.start()
    yield loop, process
    process.terminate()
    process.wait()


def test_the_quickstart_survives_people_and_publishes_the_bytes_of_a_local_run(
    node_env: NodeEnv, local: tuple[Loop, subprocess.Popen[str]]
) -> None:
    """Suspended in the middle of GRPO; then its pod is deleted, and every replica of the operator; then a restart."""
    loop, here = local
    node_env.kubectl("apply", "-f", str(loop.file))
    node_env.until_stage("quickstart", "grpo", "Running", 600)
    eventually(lambda: max(checkpoints(node_env), default=0) >= 3, "GRPO has written its third checkpoint")

    node_env.patch("quickstart", {"suspend": True})
    node_env.wait("quickstart", "Suspended", 120)
    eventually(lambda: not node_env.running_pods(), "every pod is gone")
    assert node_env.status("quickstart")["phase"] == "Suspended"
    written = checkpoints(node_env)
    node_env.patch("quickstart", {"suspend": False})
    more = eventually(lambda: checkpoints(node_env) - written, "it writes further checkpoints", 120)
    assert min(more) > max(written), "it goes on from the last one"

    (pod,) = [name for name in node_env.running_pods() if "-grpo-" in name]
    node_env.kubectl("delete", "pod", pod, "--wait=false")
    replicas = operator_pods(node_env.node)
    node_env.node.control_plane.kubectl("delete", "pods", "-n", HOME, "--grace-period=0", "--force", *replicas)

    node_env.wait("quickstart", "Complete", 900)
    output, _ = here.communicate(timeout=3600)
    assert here.returncode == 0, output
    assert node_env.status("quickstart")["finishedIterations"] == 2
    assert node_env.stage("quickstart", "grpo")["attempt"] > 2, "suspended once, deleted once"
    assert node_env.status("quickstart")["usage"].get("appRetries", 0) == 0
    assert node_env.digests("quickstart") == loop.digests()

    before = jobs(node_env)
    node_env.patch("quickstart", {"restartFrom": {"iteration": 2, "stage": "evaluate", "token": "again"}})
    eventually(lambda: jobs(node_env)["evaluate", 2] not in (None, before["evaluate", 2]), "it starts again")
    node_env.wait("quickstart", "Complete", 300)
    after = jobs(node_env)
    assert {key for key in after if after[key] != before[key]} == {("evaluate", 2), ("measure", 2), ("report", 2)}
    assert node_env.digests("quickstart") == loop.digests()

    node_env.kubectl("delete", "medgr2cycle", "quickstart")
    eventually(lambda: not node_env.pods(), "Jobs and pods go with the cycle")
    assert node_env.kubectl("get", "jobs,services", "-o", "name") == ""
    assert f"persistentvolumeclaim/{CLAIM}" in node_env.kubectl("get", "pvc", "-o", "name")  # whenDeleted: Retain


def checkpoints(node_env: NodeEnv) -> set[int]:
    """Steps of GRPO's checkpoints on the volume; after each step there is one, and the last two are kept."""
    folders = node_env.folder(CLAIM).glob("**/grpo/**/checkpoint-*")
    return {int(path.name.split("-")[1]) for path in folders if path.name.split("-")[1].isdigit()}


def jobs(node_env: NodeEnv) -> dict[tuple[str, int], str | None]:
    """(stage, iteration) → uid of its Job."""
    return {(s["name"], s["iteration"]): s.get("jobUID") for s in node_env.status("quickstart")["stages"]}


def test_two_pods_train_together(node_env: NodeEnv) -> None:
    """torchrun over two pods, DDP over gloo; they find each other by the names of the headless Service."""
    node_env.claim(CLAIM)
    off = {"enabled": False}
    stages = {"sft": {"numNodes": 2}, "grpo": off, "preferences": off, "evaluate": off, "report": off}
    document = variant("pair", stages)
    policy = document["spec"]["policy"]
    policy.pop("grpo", None), policy.pop("preferences", None)
    # with as many steps as the quickstart's, that one's artifact would do
    policy.setdefault("sft", {}).setdefault("trainer", {})["max_steps"] = STEPS
    node_env.kubectl.apply(document)

    service = dict(eventually(lambda: node_env.headless_service(), "the Service", 300))
    assert service["spec"]["publishNotReadyAddresses"]
    node_env.wait("pair", "Complete", 600)
    counters = node_env.manifest(CLAIM, "pair", "sft")["counters"]
    assert counters["steps"] == STEPS
    assert counters["train_loss"] < counters["first_loss"]
    pods = [name for name in node_env.pods() if "-sft-" in name]
    assert len(pods) == 2, pods
    logs = [node_env.kubectl("logs", name) for name in pods]
    assert all(log.strip() for log in logs)
    print(*logs, sep="\n---\n")


def test_a_vllm_starts_before_its_stage_and_ends_with_it(node_env: NodeEnv, stage_image: str) -> None:
    """A real one in the sidecar, from this computer's environment, which lies on the volume; all else is as rendered:
    script, key, address, probe. It writes candidates, and then answers for the policy: its base and its adapters."""
    node_env.claim(CLAIM)
    serving.put(node_env.folder(CLAIM))
    # what it needs beside the stage: more than the chart gives by default, for the image is not here
    env = "/spec/template/spec/initContainers/0/env/-"
    patches = [{"op": "add", "path": env, "value": {"name": k, "value": v}} for k, v in serving.ENV.items()]
    room = {"resources": {"requests": {"cpu": "100m", "memory": "2Gi"}}, "patches": patches}
    little, off = {"resources": LITTLE}, {"enabled": False}
    stages = {"generate": {"shards": 1, **room}, "score": little, "sft": little, "evaluate": room}
    document = variant("served", {**stages, **dict.fromkeys(("grpo", "preferences", "relabel", "report"), off)})
    spec = document["spec"]
    spec["generator"] = {
        "vllm": {"model": serving.MODEL, "image": stage_image, "args": serving.ARGUMENTS},
        "candidates": CANDIDATES,
        "questionsPerImage": 2,
        "sampling": {"temperature": 1.0, "topP": 1.0, "maxTokens": 24},
    }
    policy = spec["policy"]
    policy.pop("grpo", None), policy.pop("preferences", None)
    policy |= {"baseModel": serving.MODEL, "engine": {"vllm": {"image": stage_image, "args": serving.ARGUMENTS}}}
    policy["sft"] |= {"lora": {"rank": 4}}
    node_env.kubectl.apply(document)

    node_env.until_stage("served", "generate", "Succeeded", 1800)
    server, main = ended_together(node_env, "generate", "POST /v1/chat/completions")
    assert server["startedAt"] <= main["startedAt"]
    assert node_env.manifest(CLAIM, "served", "generate")["counters"]["candidates"] == CANDIDATES

    node_env.wait("served", "Complete", 1800)
    ended_together(node_env, "evaluate", "POST /inference/v1/generate")
    assert node_env.manifest(CLAIM, "served", "sft")["counters"]["steps"] > 0


def ended_together(node_env: NodeEnv, stage: str, request: str) -> tuple[Document, Document]:
    """How the sidecar of a stage ended, which was asked so, and how the stage did: without a restart."""
    (pod,) = [name for name in node_env.pods() if name.startswith(f"served-i001-{stage}-")]
    assert request in node_env.kubectl("logs", pod, "-c", "vllm")
    status = node_env.kubectl.get("pod", pod)["status"]
    (server,), (main,) = status["initContainerStatuses"], status["containerStatuses"]
    assert server["restartCount"] == 0
    assert server["state"].get("terminated"), "it ends after the stage, and does not keep the pod"
    assert main["state"]["terminated"]["exitCode"] == 0
    return server["state"]["terminated"], main["state"]["terminated"]
