"""The commands that read logs and the volume, over the API server's own streams.

kwok can stand in for a kubelet's server: it reads a log file as a kubelet does, and runs a command on this computer
where a kubelet would run it in a container. What it cannot show is in `test_cli_node.py`.
"""

from __future__ import annotations

import datetime
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes.client
import pytest
import yaml

from medgr2_jobs.store.rows.candidates import Candidate
from tests.cluster import tools
from tests.cluster.commands import LiveOutput, Medgr2
from tests.cluster.control_plane import ControlPlane
from tests.cluster.fixtures import Document, eventually
from tests.cluster.kwok import LEASE_SECONDS, POD_NETWORK, behaviour
from tests.cluster.kwok_stages import stages
from tests.cluster.processes import Processes
from tests.support.fake_artifacts import publish
from tests.support.kwok_env import KwokEnv
from tests.support.ports import free_port
from tests.support.rows import row_of

ROOT = Path(__file__).parents[2]
READY_SECONDS = 120.0
_API = {"apiVersion": "kwok.x-k8s.io/v1alpha1"}
_NO_READER = {"key": '.metadata.labels["app.kubernetes.io/component"]', "operator": "NotIn", "values": ["reader"]}


class StreamingNode:
    """A node of its own whose kubelet port is kwok's; only pods that ask for it run there."""

    def __init__(self, control_plane: ControlPlane, folder: Path) -> None:
        self._control_plane, self._folder = control_plane, folder
        self.name = f"streams-{os.urandom(3).hex()}"
        self.log, self.workspace = folder / "main.log", folder / "workspace"
        self._port = free_port()
        self._processes = Processes(folder / "kwok")
        self._core: Any = kubernetes.client.CoreV1Api(control_plane.client())

    @property
    def template(self) -> Document:
        """For `spec.template`: every pod of the cycle runs here, the reading one too."""
        return {
            "image": "localhost/stage:test",
            "nodeSelector": {"kubernetes.io/hostname": self.name},
            "tolerations": [{"key": "medgr2.io/test", "operator": "Exists"}],
        }

    def create(self) -> None:
        self.log.touch()
        self.workspace.mkdir()
        metadata = {
            "name": self.name,
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {"kubernetes.io/hostname": self.name},
        }
        taint = {"key": "medgr2.io/test", "value": self.name, "effect": "NoSchedule"}
        self._core.create_node({"metadata": metadata, "spec": {"taints": [taint]}})
        self.start()
        endpoint = {"daemonEndpoints": {"kubeletEndpoint": {"Port": self._port}}}
        self._core.patch_node_status(self.name, {"status": endpoint})

    def start(self) -> None:
        config = self._folder / "kwok.yaml"
        config.write_text(yaml.safe_dump_all(self._config(), width=10_000))
        pki = self._control_plane.folder / "pki"
        command: list[str | Path] = [
            tools.path_of("kwok"),
            f"--kubeconfig={self._control_plane.user_kubeconfig(self.name, ['system:masters'])}",
            f"--config={config}",
            f"--manage-single-node={self.name}",
            f"--node-name={self.name}",
            "--node-ip=127.0.0.1",
            f"--node-port={self._port}",
            f"--server-address=127.0.0.1:{self._port}",
            f"--tls-cert-file={pki / 'server.crt'}",
            f"--tls-private-key-file={pki / 'server.key'}",
            f"--node-lease-duration-seconds={LEASE_SECONDS}",
            f"--cidr={POD_NETWORK}",
        ]
        # where a container's image has its programs
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._processes.start("kwok", command, {"PATH": path})
        self._processes.wait("kwok", self._is_ready, READY_SECONDS)

    def stop(self) -> None:
        """As a kubelet that is restarted: the pods go on."""
        self._processes.stop("kwok")

    def remove(self) -> None:
        self.stop()
        self._core.delete_node(self.name)

    def write(self, *lines: str) -> None:
        """The containers print these lines."""
        with self.log.open("a") as file:
            for line in lines:
                now = datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "000Z")
                file.write(f"{now} stdout F {line}\n")
                time.sleep(0.001)  # two lines of one microsecond would be one to whoever asks by time

    def _is_ready(self) -> bool:
        conditions = self._core.read_node(self.name).status.conditions or []
        return any(condition.type == "Ready" and condition.status == "True" for condition in conditions)

    def _config(self) -> Iterator[Document]:
        for stage in stages():
            if stage["metadata"]["name"] == "pod-end":  # a reading pod only ends when it is deleted
                stage["spec"]["selector"]["matchExpressions"].append(_NO_READER)
            yield stage
        environment = {
            "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("crds", "jobs")),
            "MEDGR2_WORKSPACE": str(self.workspace),
        }
        envs = [{"name": key, "value": value} for key, value in environment.items()]
        local = {"workDir": str(self.workspace), "envs": envs}
        yield {**_API, "kind": "ClusterExec", "metadata": {"name": "all"}, "spec": {"execs": [{"local": local}]}}
        logs = [{"logsFile": str(self.log), "follow": True}]
        yield {**_API, "kind": "ClusterLogs", "metadata": {"name": "all"}, "spec": {"logs": logs}}


@pytest.fixture
def node(env: KwokEnv, tmp_path: Path) -> Iterator[StreamingNode]:
    streaming_node = StreamingNode(env.control_plane, tmp_path)
    try:
        streaming_node.create()
        yield streaming_node
    finally:
        streaming_node.remove()


@pytest.fixture
def medgr2(env: KwokEnv) -> Medgr2:
    return Medgr2(env)


# -- logs --------------------------------------------------------------------------------------------------------------


def test_logs_of_all_pods(env: KwokEnv, node: StreamingNode, medgr2: Medgr2) -> None:
    env.operator.start()
    forever = behaviour(run="forever", term_exit_code=143)
    patch = {"op": "add", "path": "/spec/template/metadata/annotations", "value": forever}
    env.apply(stages=[{"name": "generate", "shards": 2, "patches": [patch]}], template=node.template)
    node.write("loading", "résumé 100 %", "")
    env.running("generate")
    env.reaches("Succeeded", "measure", 0)  # runs beside it, and would be shown too
    shown = medgr2("logs", "loop").splitlines()
    assert sorted(shown) == sorted(
        f"generate@1#{index} | {line}" for index in (0, 1) for line in ("loading", "résumé 100 %", "")
    )
    assert medgr2("logs", "loop", "prepare").splitlines() == ["loading", "résumé 100 %", ""]
    beyond = medgr2.run("logs", "loop", "generate@1", "--attempt", "2")
    assert (beyond.code, beyond.err) == (2, "loop: generate@1 has had 1 attempts so far\n")


def test_logs_go_on_over_a_broken_connection_without_a_line_lost_or_doubled(
    env: KwokEnv, node: StreamingNode, medgr2: Medgr2
) -> None:
    env.operator.start()
    env.apply(annotations_of={"prepare": behaviour(run="forever", term_exit_code=143)}, template=node.template)
    env.running("prepare", 0)
    node.write("one")
    following = medgr2.start("logs", "loop", "-f")
    printed = LiveOutput(following)
    eventually(lambda: printed() == ["one"], "what was there")
    node.write("two", "three")
    eventually(lambda: printed() == ["one", "two", "three"], "what came")
    node.stop()
    node.write("four")
    node.start()
    node.write("five")
    eventually(lambda: "five" in printed(), "what came meanwhile and after")
    words = "context cancelled"  # kwok's own, at its end: they come through as they are
    assert [line for line in printed() if line != words] == ["one", "two", "three", "four", "five"]
    following.send_signal(signal.SIGINT)
    assert following.wait(30) == 130


def test_logs_follow_a_stage_into_its_next_attempt(env: KwokEnv, node: StreamingNode, medgr2: Medgr2) -> None:
    env.operator.start()
    env.apply(
        annotations_of={"prepare": behaviour(exit_code=75, run="forever", term_exit_code=143)},
        failurePolicy={"backoffSeconds": 0},
        template=node.template,
    )
    env.running("prepare", 0)
    node.write("at work")
    following = medgr2.start("logs", "loop", "prepare", "-f")
    printed = LiveOutput(following)
    eventually(lambda: printed() == ["at work"], "the first attempt")
    env.kubectl("delete", "pod", *env.live_pods(), "--wait=false")
    eventually(lambda: env.stage("prepare", 0).get("attempt") == 2, "the second attempt")
    eventually(lambda: printed() == ["at work"] * 2, "the second attempt's log")  # the pods share one file
    following.send_signal(signal.SIGTERM)
    assert following.wait(30) == 143


def test_logs_whose_pods_are_gone_come_from_the_volume(env: KwokEnv, node: StreamingNode, medgr2: Medgr2) -> None:
    env.operator.start()
    env.apply(template=node.template)
    env.wait("Complete")
    env.kubectl("delete", "jobs", "--all")
    eventually(lambda: not env.live_pods() and not env.kubectl.get("pods")["items"], "no pod is left")
    path = node.workspace / "cycles/loop/logs/i001-grpo-a1-s0.log"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"reward 0.7\n\xff\xfe\n")
    process = medgr2.start("logs", "loop", "grpo")
    assert process.communicate(timeout=600)[0].decode() == "reward 0.7\n\ufffd\ufffd\n"
    command = medgr2.run("logs", "loop", "sft", "--no-volume")
    assert command.code == 1
    assert command.err.splitlines()[0] == "sft@1, attempt 1: its pods are gone"
    assert "the log went with its pods" in command.err


# -- the volume --------------------------------------------------------------------------------------------------------


def test_copy_and_report(env: KwokEnv, node: StreamingNode, medgr2: Medgr2, tmp_path: Path) -> None:
    env.apply(template=node.template)
    artifact = node.workspace / "artifacts/report/abc/a1"
    (artifact / "figures").mkdir(parents=True)
    (artifact / "report.md").write_text("# 0.871\n")
    content = os.urandom(1 << 20) + bytes(range(256)) * 20_000
    (artifact / "figures/accuracy.png").write_bytes(content)
    (artifact / "elsewhere").symlink_to("/etc")
    link = node.workspace / "cycles/loop/report"
    link.parent.mkdir(parents=True)
    link.symlink_to("../../artifacts/report/abc/a1")
    here = tmp_path / "here"
    here.mkdir()

    assert medgr2("report", "loop", here) == f"report: {here}/loop-report/report.md\n"
    assert (here / "loop-report/figures/accuracy.png").read_bytes() == content
    again = medgr2.run("report", "loop", here)
    assert (again.code, again.err) == (2, f"{here}/loop-report is there already; --force replaces it\n")
    (artifact / "report.md").write_text("# 0.885\n")
    medgr2("report", "loop", here, "--force")
    assert (here / "loop-report/report.md").read_text() == "# 0.885\n"

    copied = medgr2.run("cp", "loop:cycles/loop/report", here / "mine")
    assert re.fullmatch(rf"{here}/mine: 2 files, \d+ bytes\n", copied.out)
    assert copied.err == "left out 1 links that lead elsewhere: elsewhere\n"
    medgr2("cp", "loop:cycles/loop/report/report.md", here)
    assert sorted(path.name for path in here.iterdir()) == ["loop-report", "mine", "report.md"]
    assert env.control_plane.audit.created("pods", env.namespace)
    eventually(lambda: not env.kubectl.get("pods")["items"], "no pod is left")


def test_what_cannot_be_copied_leaves_nothing(
    env: KwokEnv, node: StreamingNode, medgr2: Medgr2, tmp_path: Path
) -> None:
    env.apply(template=node.template)
    (node.workspace / "outside").symlink_to("/etc")
    here = tmp_path / "here"
    here.mkdir()
    for path in ("outside", "outside/passwd", "nothing"):
        done = medgr2.run("cp", f"loop:{path}", here)
        assert done.code != 0
        assert done.out == ""
    big = node.workspace / "big"
    big.write_bytes(os.urandom(1 << 20) * 256)
    process = medgr2.start("cp", "loop:big", here)
    eventually(lambda: any(here.iterdir()), "it begins")
    node.stop()  # the kubelet goes away in the middle
    assert process.wait(120) == 75
    assert list(here.iterdir()) == []
    node.start()
    eventually(lambda: not env.kubectl.get("pods")["items"], "no pod is left")


def test_lineage(env: KwokEnv, node: StreamingNode, medgr2: Medgr2) -> None:
    env.apply(template=node.template)
    row = row_of(
        Candidate, triplet_id="t001-000000-00", iteration=1, image_sha256="ab" * 32, modality="CT",
        question_type="finding", question="Was ist das für eins?", options=["a", "b"], answer_index=1,
        rationale="", response="", paradigm="Direct", template_sha256="f" * 64, generator="g",
        outcome="ok", attempts=1, input_tokens=0, output_tokens=0, usd=0.0,
    )  # fmt: skip
    publish(node.workspace, "generate", 1, tables={Candidate: [row]}, cycle="loop")
    output = medgr2("lineage", "loop", "t001-000000-00")
    assert "Was ist das für eins?" in output
    assert "decision   none so far" in output
