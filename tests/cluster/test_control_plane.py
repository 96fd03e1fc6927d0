"""Level 1 serves what the operator needs, tells what it did, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from kubernetes.client import VersionApi

from tests.cluster import cluster_lock, tools
from tests.cluster.audit import Event
from tests.cluster.control_plane import ControlPlane
from tests.cluster.fixtures import Kubectl, eventually
from tests.cluster.processes import ProcessError, Processes, is_alive

pytestmark = pytest.mark.cluster


def test_the_api_server_says_its_version(control_plane: ControlPlane) -> None:
    assert VersionApi(control_plane.client()).get_code().git_version == "v1.34.4"
    client = json.loads(control_plane.kubectl("version", "--client", "-o", "json"))
    assert client["clientVersion"]["gitVersion"] == "v1.34.4"


def test_only_loopback_is_listened_on(control_plane: ControlPlane) -> None:
    for record in control_plane.processes.records().values():
        for connection in psutil.Process(record["pid"]).net_connections("inet"):
            assert connection.laddr.ip == "127.0.0.1", (record["program"], connection)


def test_strangers_are_refused(control_plane: ControlPlane) -> None:
    with pytest.raises(RuntimeError, match="You must be logged in to the server"):
        control_plane.kubectl("--token=wrong", "get", "namespaces")


def test_users_have_the_rights_that_they_are_given(
    control_plane: ControlPlane, namespace: str, kubectl: Kubectl
) -> None:
    user = control_plane.user_kubeconfig("alice@example.org", ["viewers"])
    kubectl("create", "serviceaccount", "robot")
    robot = control_plane.service_account_kubeconfig(namespace, "robot")

    def says(kubeconfig: Path) -> str:
        return control_plane.kubectl("get", "pods", "-n", namespace, check=False, kubeconfig=kubeconfig)

    assert 'User "alice@example.org" cannot list' in says(user)
    assert f'User "system:serviceaccount:{namespace}:robot" cannot list' in says(robot)
    subjects = ["--group=viewers", f"--serviceaccount={namespace}:robot"]
    kubectl("create", "rolebinding", "viewers", "--clusterrole=view", *subjects)
    eventually(lambda: "No resources found" in says(user), "alice may list pods")
    eventually(lambda: "No resources found" in says(robot), "the robot may list pods")


def test_the_audit_log_counts_creations(control_plane: ControlPlane, namespace: str, kubectl: Kubectl) -> None:
    kubectl("create", "job", "one", "--image=nothing")
    kubectl("create", "job", "only-asked", "--image=nothing", "--dry-run=server")
    with pytest.raises(RuntimeError, match="already exists"):
        kubectl("create", "job", "one", "--image=nothing")
    audit = control_plane.audit

    def asked() -> list[Event]:
        return list(audit.events(verb="create", resource="jobs", namespace=namespace))

    eventually(lambda: len(asked()) == 3, "three requests in the audit log")
    assert [(event.name, event.code, event.dry_run, event.user) for event in asked()] == [
        ("one", 201, False, "admin"),
        ("only-asked", 201, True, "admin"),
        ("one", 409, False, "admin"),
    ]
    assert audit.created("jobs", namespace) == ["one"]
    assert asked()[0].raw["requestObject"]["spec"]["template"]["spec"]["containers"][0]["image"] == "nothing"


def test_the_audit_log_shows_reads_of_service_accounts_only(
    control_plane: ControlPlane, namespace: str, kubectl: Kubectl
) -> None:
    kubectl("create", "serviceaccount", "robot")
    robot = control_plane.service_account_kubeconfig(namespace, "robot")
    control_plane.kubectl("get", "pods", "-n", namespace, check=False, kubeconfig=robot)
    kubectl("get", "pods")
    eventually(lambda: any(control_plane.audit.events(namespace=namespace, resource="pods")), "the robot's read")
    users = {event.user for event in control_plane.audit.events(resource="pods", verb="list", namespace=namespace)}
    assert users == {f"system:serviceaccount:{namespace}:robot"}


def test_secrets_stay_out_of_the_audit_log(control_plane: ControlPlane, namespace: str, kubectl: Kubectl) -> None:
    kubectl("create", "secret", "generic", "key", "--from-literal=password=tell-nobody")
    eventually(lambda: control_plane.audit.created("secrets", namespace), "the creation in the audit log")
    assert "dGVsbC1ub2JvZHk" not in control_plane.audit.path.read_text()


def test_stop_leaves_nothing_behind(tmp_path: Path) -> None:
    cluster = ControlPlane(tmp_path / "run")
    with cluster:
        records = cluster.processes.records()
        assert sorted(records) == ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"]
        assert all(is_alive(record) for record in records.values())
        assert cluster.healthy()
    assert not any(psutil.pid_exists(record["pid"]) for record in records.values())
    assert not cluster.folder.exists()
    assert not cluster.healthy()


def test_a_component_that_fails_shows_its_log_and_takes_the_others_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "kube-scheduler"
    broken.write_text("#!/bin/sh\necho I am broken; exec sleep 0.2\n")
    broken.chmod(0o755)
    binaries = {**tools.ensure(tools.CONTROL_PLANE), "kube-scheduler": broken}
    monkeypatch.setattr(tools, "ensure", lambda names: binaries)
    cluster = ControlPlane(tmp_path / "run")
    with pytest.raises(ProcessError, match=r"(?s)^kube-scheduler ended while it started.*I am broken"):
        cluster.start()
    assert cluster.processes.records() == {}
    assert not [process for process in psutil.process_iter() if str(cluster.folder) in " ".join(_command(process))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def test_what_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    processes.start("deaf", ["/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"])
    processes.wait("deaf", lambda: "ready" in processes.log("deaf").read_text(), 10)
    (record,) = processes.records().values()
    processes.stop(seconds=0.3)
    assert not psutil.pid_exists(record["pid"])


def test_what_another_living_process_started_is_stopped(tmp_path: Path) -> None:
    """It stays a zombie until its parent reaps it: one worker starts the shared cluster, another may stop it."""
    start = "import pathlib, sys; from tests.cluster.processes import Processes as P; "
    start += "P(pathlib.Path(sys.argv[1])).start('etcd', ['sleep', '600']); print('started', flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", start, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "started\n"
        (record,) = Processes(tmp_path).records().values()
        Processes(tmp_path).stop()
        assert not is_alive(record)
        assert psutil.Process(record["pid"]).status() == psutil.STATUS_ZOMBIE
        assert Processes(tmp_path).records() == {}


def test_a_pid_that_belongs_to_somebody_else_is_left_alone(tmp_path: Path) -> None:
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        (tmp_path / "pids").mkdir()
        record = {"pid": stranger.pid, "created": time.time() - 3600, "program": "etcd"}
        (tmp_path / "pids" / "etcd.json").write_text(json.dumps(record))
        Processes(tmp_path).stop()
        assert stranger.poll() is None
        assert Processes(tmp_path).records() == {}
    finally:
        stranger.kill()
        stranger.wait()


def test_clusters_of_crashed_runs_are_removed(tmp_path: Path) -> None:
    crashed = """
import os, sys
from tests.cluster import cluster_lock as shared
from tests.cluster.processes import Processes
from tests.cluster.audit import Event
from tests.cluster.control_plane import ControlPlane
def start(cluster):
    cluster.folder.mkdir(parents=True)
    cluster.processes.start("etcd", ["sleep", "600"])
ControlPlane.start = start
for name in ("crashed", "kept"):
    shared.SharedCluster(name).join()
(shared.clusters() / "kept" / "keep").touch()
os._exit(9)
"""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", crashed], env=environment).returncode == 9
    folder = tmp_path / "medgr2" / "clusters"
    records = {name: Processes(folder / name).records()["etcd"] for name in ("crashed", "kept")}
    assert all(map(is_alive, records.values()))
    remove = "from tests.cluster import cluster_lock as shared\nwith shared.locked(): print(shared.remove_leftovers())"
    done = subprocess.run([sys.executable, "-c", remove], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['crashed']"
    assert not is_alive(records["crashed"])
    assert not (folder / "crashed").exists()
    Processes(folder / "kept").stop()
    assert not is_alive(records["kept"])


def test_the_last_user_stops_a_shared_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def start(cluster: ControlPlane) -> None:
        cluster.folder.mkdir(parents=True)
        cluster.processes.start("etcd", ["sleep", "600"])

    monkeypatch.setattr(ControlPlane, "start", start)
    monkeypatch.setattr(ControlPlane, "healthy", lambda cluster: cluster.processes.alive("etcd"))
    ours, theirs = cluster_lock.SharedCluster("run"), cluster_lock.SharedCluster("run")
    records = [cluster.join().processes.records()["etcd"] for cluster in (ours, theirs)]
    assert records[0] == records[1]  # started once
    other = subprocess.Popen(["sleep", "60"])
    users = ours.control_plane.folder / "users"
    (users / "other.json").write_text(json.dumps({"pid": other.pid, "created": time.time()}))
    ours.leave()
    assert is_alive(records[0])
    other.kill()
    other.wait()
    theirs.leave()
    assert not is_alive(records[0])
    assert not ours.control_plane.folder.exists()
