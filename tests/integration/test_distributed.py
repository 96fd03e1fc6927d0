"""Trainings in several processes. A node is a stage.py on loopback, told what `render/torchrun.py` tells a pod."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from medgr2_api.stage_contract import (
    DEEPSPEED_ENV,
    INDEX_ENV,
    NUM_NODES_ENV,
    NUM_PROC_PER_NODE_ENV,
    RDZV_ENDPOINT_ENV,
    RDZV_ID_ENV,
    RDZV_TIMEOUT_ENV,
    REQUEST_ENV,
    RESULT_PATH_ENV,
    WORKSPACE_ENV,
    ExitCode,
    StageRequest,
    StageResult,
)
from medgr2_jobs.models import vlm
from medgr2_jobs.reward.model import RewardModel
from medgr2_jobs.store.artifact import ArtifactReader, ArtifactWriter
from medgr2_jobs.store.rows.training import Rollout
from medgr2_jobs.training import checkpoints
from tests.support import policy_fixtures
from tests.support.fixtures import artifact_ref, prepared_workspace, stage_request
from tests.support.policy_fixtures import PolicyWorkspace
from tests.support.ports import free_port

SFT = {"max_steps": 40, "per_device_train_batch_size": 2, "save_steps": 4}
_PATIENCE = 240.0  # seconds, for a busy machine


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> PolicyWorkspace:
    return policy_fixtures.build(tmp_path_factory.mktemp("workspace"))


@dataclass
class Node:
    """One pod's stage.py."""

    process: subprocess.Popen[bytes]
    result_path: Path
    log: Path
    code: int | None = None

    @property
    def result(self) -> StageResult:
        return StageResult.model_validate_json(self.result_path.read_text())

    def ranks(self) -> list[psutil.Process]:
        """Its processes that train."""
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
            return [child for child in children if "medgr2_jobs.runner.distributed.rank_main" in child.cmdline()[1:4]]
        except psutil.NoSuchProcess:
            return []

    def wait(self) -> int:
        self.code = self.process.wait(_PATIENCE)
        return self.code


@dataclass
class Cluster:
    """The pods of one attempt's Job."""

    root: Path
    scratch: Path
    nodes: list[Node] = field(default_factory=list)

    def start(self, request: StageRequest, *, nodes: int = 2, processes: int = 1, come: int | None = None, **env: str):
        """Starts `come` of the pods (default: all)."""
        endpoint = f"127.0.0.1:{free_port()}"
        for index in range(nodes if come is None else come):
            stem = self.scratch / f"{request.attempt}-{index}"
            environment = {
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "GLOO_SOCKET_IFNAME": "lo",
                REQUEST_ENV: request.model_dump_json(by_alias=True),
                WORKSPACE_ENV: str(self.root),
                RESULT_PATH_ENV: f"{stem}.json",
                INDEX_ENV: str(index),
                NUM_NODES_ENV: str(nodes),
                NUM_PROC_PER_NODE_ENV: str(processes),
                RDZV_ENDPOINT_ENV: endpoint,
                RDZV_ID_ENV: f"job-a{request.attempt}",
                **env,
            }
            with stem.with_suffix(".log").open("wb") as log:
                command = [sys.executable, "-m", "medgr2_jobs.runner.main"]
                process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            self.nodes.append(Node(process, stem.with_suffix(".json"), stem.with_suffix(".log")))
        return self

    def ended(self) -> list[int]:
        """Waits; exit codes."""
        return [node.wait() for node in self.nodes]

    def until(self, condition: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            assert all(node.process.poll() is None for node in self.nodes), f"ended before {what}: {self.logs()}"
            assert time.monotonic() < deadline, f"never {what}: {self.logs()}"
            time.sleep(0.02)

    def logs(self) -> str:
        return "\n".join(node.log.read_text(errors="replace")[-4000:] for node in self.nodes)

    def kill(self) -> None:
        for node in self.nodes:
            if node.process.poll() is None:
                node.process.kill()
                node.process.wait()


@pytest.fixture
def cluster(workspace: PolicyWorkspace, tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    made: list[Cluster] = []

    def start(request: StageRequest, root: Path = workspace.root, **options: Any) -> Cluster:
        made.append(Cluster(root, tmp_path).start(request, **options))
        return made[-1]

    yield start
    for some in made:
        some.kill()


def sft(workspace: PolicyWorkspace, name: str, attempt: int = 1, **trainer: Any) -> StageRequest:
    return workspace.sft({**SFT, **trainer}, name=name, attempt=attempt)


def losses(workspace: PolicyWorkspace, request: StageRequest) -> list[float]:
    entries = json.loads(workspace.reader(request).file("log.json").read_text())
    return [entry["loss"] for entry in entries if "loss" in entry]


def checkpoint(workspace: PolicyWorkspace, request: StageRequest, layout: str = "2 DDP") -> int:
    """Step of the newest complete checkpoint of two processes; -1: none."""
    found = checkpoints.latest_checkpoint(ArtifactWriter(workspace.root, request).work, layout)
    return int(found.name.rsplit("-", 1)[1]) if found else -1


def test_sft_on_two_nodes_survives_kills_and_stops(workspace: PolicyWorkspace, cluster: Callable[..., Cluster]) -> None:
    """`kill -9` of one process, SIGTERM to one pod, then to the end: the same bytes as undisturbed; and the same
    training as one process with batches of twice the size."""
    straight = sft(workspace, "straight")
    whole = cluster(straight)
    assert whole.ended() == [0, 0], whole.logs()
    one, other = (node.result for node in whole.nodes)
    assert one == other  # whichever pod the operator reads
    assert one.output_digest == workspace.reader(straight).digest
    found = losses(workspace, straight)
    assert len(found) == 40
    assert sum(found[-5:]) < 0.7 * sum(found[:5])
    vlm.load_model(workspace.reader(straight).folder_of("model"))

    alone = sft(workspace, "alone", per_device_train_batch_size=4)
    assert workspace.run(alone) is not None
    assert losses(workspace, alone) == pytest.approx(found, rel=1e-3)

    torn = sft(workspace, "torn")
    killed = cluster(torn)
    killed.until(lambda: checkpoint(workspace, torn) >= 8, "step 8")
    (victim,) = killed.nodes[1].ranks()
    victim.kill()
    assert killed.ended() == [ExitCode.SIGTERM, 128 + signal.SIGKILL], killed.logs()
    assert [node.result.reason for node in killed.nodes] == ["PeerLost", "ProcessKilled"]
    assert not (ArtifactWriter(workspace.root, torn).base / "manifest.json").exists()

    second = sft(workspace, "torn", 2)
    reached = checkpoint(workspace, second)
    assert reached >= 8
    stopped = cluster(second)
    stopped.until(lambda: checkpoint(workspace, second) > reached, "a further step")
    stopped.nodes[1].process.send_signal(signal.SIGTERM)  # an eviction: the other pod knows nothing of it
    assert stopped.ended() == [ExitCode.CHECKPOINTED, ExitCode.CHECKPOINTED], stopped.logs()
    steps = {node.result.checkpoint_step for node in stopped.nodes}
    assert steps == {checkpoint(workspace, second)}
    assert min(steps) > reached

    third = sft(workspace, "torn", 3)
    resumed = cluster(third)
    assert resumed.ended() == [0, 0], resumed.logs()
    assert resumed.nodes[0].result.output_digest == one.output_digest

    again = cluster(sft(workspace, "torn", 4))  # nobody waits for anybody
    assert again.ended() == [0, 0]
    assert all(node.result.reused for node in again.nodes)


def test_grpo_in_two_processes_of_one_node(workspace: PolicyWorkspace, cluster: Callable[..., Cluster]) -> None:
    request = workspace.grpo({"max_steps": 4, "per_device_train_batch_size": 8}, name="two-processes")
    pod = cluster(request, nodes=1, processes=2)
    assert pod.ended() == [0], pod.logs()
    reader = workspace.reader(request)
    assert len(reader.rows(Rollout)) == 4 * 4  # a whole group of each step, from one of the processes
    assert reader.manifest.counters["steps"] == 4
    vlm.load_model(reader.folder_of("model"))


def first_reward(root: Path, **trainer: object) -> StageRequest:
    """A first training of R with these options, in a workspace that this makes."""
    _, prepare = prepared_workspace(root)
    learning = {"lora": {"rank": 4, "alpha": 8}, "learningRate": 1e-3, "numEpochs": 1}
    parameters = {
        "seed": 5,
        "retrain": False,
        "head": "LastTokenAndLikelihood",
        "grades": {},
        "training": {**learning, "trainer": {"max_steps": 6, "per_device_train_batch_size": 4, **trainer}},
        "replayFraction": 0.5,
        "promotion": {
            "minSpearman": -1,
            "minPairwiseAccuracy": 0,
            "minImageSensitivity": 0,
            "maxMeanAbsoluteError": 16,
            "minAurocGain": -1,
            "maxRegression": 2,
            "nonInferiorityMargin": 2,
        },
        "answerFormat": "OptionText",
    }
    return stage_request("reward", 0, parameters, {"prepare": prepare})


def test_the_reward_model_in_two_processes_of_one_node(tmp_path: Path, cluster: Callable[..., Cluster]) -> None:
    request = first_reward(tmp_path)
    pod = cluster(request, tmp_path, nodes=1, processes=2)
    assert pod.ended() == [0], pod.logs()
    reader = ArtifactReader(tmp_path, artifact_ref(tmp_path, request))
    assert len(json.loads(reader.file("training_log.json").read_text())) == 6
    assert "spearman" in reader.manifest.counters
    RewardModel.load(reader.folder_of("model"))


def test_a_bad_configuration_stays_permanent(workspace: PolicyWorkspace, cluster: Callable[..., Cluster]) -> None:
    pods = cluster(sft(workspace, "bad", learning_rte=1), nodes=1, processes=2)
    assert pods.ended() == [ExitCode.CONFIG], pods.logs()
    assert "learning_rate" in pods.nodes[0].result.message


def test_a_training_that_diverges_ends_in_all_processes(
    workspace: PolicyWorkspace, cluster: Callable[..., Cluster]
) -> None:
    request = sft(workspace, "diverges")
    request.parameters["training"]["learningRate"] = 1e30
    running = cluster(request, nodes=2)
    assert running.ended() == [ExitCode.CONFIG, ExitCode.CONFIG]
    assert "the training has diverged" in running.nodes[0].result.message
    assert not list((workspace.root / "artifacts" / "sft" / request.input_hash).rglob("manifest.json"))


def test_a_node_that_never_comes(workspace: PolicyWorkspace, cluster: Callable[..., Cluster]) -> None:
    pods = cluster(sft(workspace, "lonely"), come=1, **{RDZV_TIMEOUT_ENV: "2"})
    assert pods.ended() == [ExitCode.SIGTERM], pods.logs()
    assert pods.nodes[0].result.reason == "RendezvousTimeout"


def test_stopped_while_it_waits_for_the_others(workspace: PolicyWorkspace, cluster: Callable[..., Cluster]) -> None:
    pods = cluster(sft(workspace, "early"), come=1)
    pods.until(lambda: "rank" not in pods.logs() and _children(pods.nodes[0]), "torchrun is there")
    pods.nodes[0].process.terminate()
    assert pods.ended() == [ExitCode.SIGTERM], pods.logs()
    assert pods.nodes[0].result.reason == "Terminated"


def _children(node: Node) -> list[psutil.Process]:
    return psutil.Process(node.process.pid).children()


@pytest.mark.parametrize("setting", [{"processes": 2}, {DEEPSPEED_ENV: "Zero2"}])
def test_a_stage_that_runs_alone_says_so(
    workspace: PolicyWorkspace, cluster: Callable[..., Cluster], setting: Any
) -> None:
    pod = cluster(workspace.preferences(), **{"nodes": 1, **setting})
    assert pod.ended() == [ExitCode.CONFIG], pod.logs()
    assert "runs in one process" in pod.nodes[0].result.message
