"""Logs and the volume on a real kubelet: exit codes, a read-only mount, a pod that is taken away.

No operator runs here: the cycle's status and pods are written by hand, which says exactly what the commands meet.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from medgr2_operator.cli.cluster_options import ReaderPodOptions
from medgr2_operator.cli.connection import Cluster
from medgr2_operator.cli.errors import CommandError
from medgr2_operator.cli.volume import opened
from medgr2_operator.kube.kubeconfig import connect
from medgr2_operator.kube.logs_exec import execute
from medgr2_operator.render import labels
from medgr2_operator.render.volume_reader_pod import READER
from tests.cluster.commands import LiveOutput, Medgr2
from tests.cluster.control_plane import ControlPlane
from tests.cluster.fixtures import Kubectl, eventually, serve_crd
from tests.cluster.node import Node
from tests.support.kwok_env import QUICKSTART, KwokEnv

START_SECONDS = 180.0
MEBIBYTES = 64
_WRITE = f"""
import hashlib, os, pathlib
root = pathlib.Path('/workspace')
made = root / 'artifacts/report/abc/a1'
made.mkdir(parents=True)
(made / 'report.md').write_text('# 0.871')
(root / 'cycles/loop').mkdir(parents=True)
(root / 'cycles/loop/report').symlink_to('../../artifacts/report/abc/a1')
(root / 'outside').symlink_to('/etc')
data = os.urandom(1 << 20) * {MEBIBYTES}
(root / 'big').write_bytes(data)
print(hashlib.sha256(data).hexdigest())
"""


class Volume(KwokEnv):
    """A namespace that enforces Pod Security restricted, a cycle in it, and its volume with something on it."""

    image = ""
    sha256 = ""
    """Of the file `big`."""

    def fill(self, image: str) -> None:
        self.image = image
        self.kubectl("label", "namespace", self.namespace, "pod-security.kubernetes.io/enforce=restricted")
        claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        self.kubectl.apply(
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "medgr2-data"}, "spec": claim}
        )
        document = yaml.safe_load(QUICKSTART.read_text())
        document["metadata"]["name"] = "loop"
        document["spec"]["template"] = {"image": image}
        self.kubectl.apply(document)
        self.run_pod("fill", _WRITE)
        eventually(lambda: self.phase("fill") == "Succeeded", "the volume is filled", START_SECONDS)
        self.sha256 = self.kubectl("logs", "fill").strip()
        self.kubectl("delete", "pod", "fill")

    def run_pod(self, name: str, program: str, marks: dict[str, str] | None = None) -> None:
        """A pod with the volume that runs a Python program."""
        restricted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        main = {
            "name": "main",
            "image": self.image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["python", "-u", "-c", program],
            "securityContext": restricted,
            "volumeMounts": [{"name": "workspace", "mountPath": "/workspace"}],
        }
        user = {"runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532}
        spec = {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "securityContext": {**user, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [main],
            "volumes": [{"name": "workspace", "persistentVolumeClaim": {"claimName": "medgr2-data"}}],
        }
        metadata = {"name": name, "labels": marks or {}}
        self.kubectl.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})

    def phase(self, pod: str) -> str:
        return str(self.kubectl.get("pod", pod)["status"].get("phase"))

    def tell(self, **stage: Any) -> None:
        """Writes the status of sft@1, as the operator would."""
        record = {"iteration": 1, "name": "sft", "attempt": 1, **stage}
        status = {"status": {"phase": "Running", "stages": [record]}}
        self.kubectl("patch", "mgc", "loop", "--subresource=status", "--type=merge", "-p", json.dumps(status))

    def marks(self, attempt: int) -> dict[str, str]:
        """Labels of the pods of sft@1."""
        uid = self.cycle()["metadata"]["uid"]
        return {
            labels.CYCLE_UID: uid, labels.ITERATION: "1", labels.STAGE: "sft", labels.TOKEN: "",
            labels.ATTEMPT: str(attempt),
        }  # fmt: skip


@pytest.fixture(scope="module")
def control_plane(node_cluster: Node) -> ControlPlane:
    """In this module, the node's; namespaces and kubectl follow."""
    return node_cluster.control_plane


@pytest.fixture(scope="module")
def crd(control_plane: ControlPlane) -> str:
    return serve_crd(control_plane)


@pytest.fixture
def volume(
    control_plane: ControlPlane, stage_image: str, crd: str, kubectl: Kubectl, namespace: str,
    tmp_path: Path,
) -> Iterator[Volume]:  # fmt: skip
    volume_env = Volume(control_plane, kubectl, namespace, tmp_path)
    volume_env.fill(stage_image)
    yield volume_env
    volume_env.close()


@pytest.fixture
def medgr2(volume: Volume) -> Medgr2:
    return Medgr2(volume)


def test_copies_are_byte_for_byte(volume: Volume, medgr2: Medgr2, tmp_path: Path) -> None:
    medgr2("cp", "loop:big", tmp_path)
    assert hashlib.sha256((tmp_path / "big").read_bytes()).hexdigest() == volume.sha256
    assert medgr2("report", "loop", tmp_path) == f"report: {tmp_path}/loop-report/report.md\n"
    assert (tmp_path / "loop-report/report.md").read_text() == "# 0.871"
    eventually(lambda: not volume.kubectl.get("pods")["items"], "no pod is left")


def test_exit_codes_and_words_come_from_inside(volume: Volume, medgr2: Medgr2, tmp_path: Path) -> None:
    missing = medgr2.run("cp", "loop:cycles/loop/reprot", tmp_path)
    assert (missing.code, missing.err) == (
        2, "cycles/loop/reprot: no such file or folder; cycles/loop has report/\n"
    )  # fmt: skip
    outside = medgr2.run("cp", "loop:outside/passwd", tmp_path)
    assert outside.code == 78
    assert "leads out of the workspace" in outside.err
    unknown = medgr2.run("lineage", "loop", "t001-000000-00")
    assert unknown.code == 2
    assert list(tmp_path.glob("[!.]*")) == []


def test_a_pod_that_is_taken_away_leaves_nothing_half_written(volume: Volume, medgr2: Medgr2, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    copying = medgr2.start("cp", "loop:big", here)
    eventually(lambda: any(here.iterdir()), "it begins", START_SECONDS)
    copying.send_signal(signal.SIGSTOP)  # or it is over before the pod is
    volume.kubectl("delete", "pods", "--all", "--grace-period=1", "--wait")  # until its processes are gone
    copying.send_signal(signal.SIGCONT)
    _, err = copying.communicate(timeout=600)
    assert copying.returncode == 75, err.decode()
    assert list(here.iterdir()) == []


def test_a_pod_that_is_gone_before_the_command_starts_is_a_failure_that_may_pass(volume: Volume) -> None:
    async def tries() -> None:
        async with (
            connect(str(volume.control_plane.kubeconfig)) as (client, _),
            opened(Cluster(client, volume.namespace), "loop", ReaderPodOptions("", START_SECONDS)) as at,
        ):
            volume.kubectl("delete", "pod", at.pod, "--grace-period=1", "--wait")
            await at.run("export", "big", stdout=print)

    with pytest.raises(CommandError, match="was taken away") as raised:
        asyncio.run(tries())
    assert raised.value.exit_code == 75


def test_the_reading_pod_can_only_read(volume: Volume) -> None:
    async def tries() -> list[int]:
        programs = (
            "open('/workspace/mine', 'w')",
            "open('/mine', 'w')",
            "open('/var/run/secrets/kubernetes.io/serviceaccount/token')",
        )
        async with (
            connect(str(volume.control_plane.kubeconfig)) as (client, _),
            opened(Cluster(client, volume.namespace), "loop", ReaderPodOptions("", START_SECONDS)) as at,
        ):
            return [
                (await execute(client, at.pod, at.namespace, READER, ["python", "-c", program], print)).exit_code
                for program in ("pass", *programs)
            ]

    assert asyncio.run(tries()) == [0, 1, 1, 1]


def test_the_writing_pod_can_write_to_one_folder_only(volume: Volume) -> None:
    """And is given what it reads, with an exit code of its own."""

    async def tries() -> list[int]:
        programs = (
            "open('/workspace/reviews/mine', 'wb').write(__import__('sys').stdin.buffer.read(70000))",
            "assert open('/workspace/reviews/mine', 'rb').read() == bytes(range(250)) * 280",
            "open('/workspace/mine', 'w')",
            "open('/workspace/cycles/mine', 'w')",
            "raise SystemExit(65)",
        )
        data = bytes(range(250)) * 280
        async with (
            connect(str(volume.control_plane.kubeconfig)) as (client, _),
            opened(Cluster(client, volume.namespace), "loop", ReaderPodOptions("", START_SECONDS), "reviews") as at,
        ):
            return [
                (await execute(client, at.pod, at.namespace, READER, ["python", "-c", program], print, data)).exit_code
                for program in programs
            ]

    assert asyncio.run(tries()) == [0, 0, 1, 1, 65]


def test_logs_follow_over_two_attempts_to_the_end(volume: Volume, medgr2: Medgr2) -> None:
    program = "import time\nfor n in range(3): print('{} step', n); time.sleep(1)"
    volume.tell(state="Running")
    volume.run_pod("sft-1", program.format("first"), volume.marks(1))
    following = medgr2.start("logs", "loop", "-f")
    printed = LiveOutput(following)
    eventually(printed, "it follows", START_SECONDS)  # or it may come too late for the first attempt
    eventually(lambda: volume.phase("sft-1") == "Succeeded", "the first attempt ends", START_SECONDS)
    volume.tell(state="Pending", attempt=2)
    volume.run_pod("sft-2", program.format("second"), volume.marks(2))
    eventually(lambda: volume.phase("sft-2") == "Succeeded", "the second attempt ends", START_SECONDS)
    volume.tell(state="Succeeded", attempt=2)
    assert following.wait(600) == 0
    assert printed() == [f"{which} step {n}" for which in ("first", "second") for n in range(3)]
    assert following.err.read_text().splitlines()[-1] == "sft@1: Succeeded"


def test_a_log_that_is_not_there_is_told(volume: Volume, medgr2: Medgr2) -> None:
    volume.tell(state="Succeeded", message="done")
    command = medgr2.run("logs", "loop", "sft")
    assert command.code == 1
    assert "the log went with its pods, and the volume has no log of it" in command.err
