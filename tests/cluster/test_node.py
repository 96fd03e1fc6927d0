"""Level 3 runs containers, and they find each other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster import images
from tests.cluster.fixtures import Document, Kubectl, eventually, fresh_namespace
from tests.cluster.node import BRIDGE_IP, NAME, Node

pytestmark = pytest.mark.cluster


@pytest.fixture
def kubectl(node_cluster: Node, request: pytest.FixtureRequest) -> Iterator[Kubectl]:
    """kubectl in a namespace of the node's cluster."""
    title = request.node.name.removeprefix("test_")
    with fresh_namespace(node_cluster.control_plane, title) as namespace:
        yield Kubectl(node_cluster.control_plane, namespace)


def pod(name: str, script: str, **spec: object) -> Document:
    """A pod that runs a shell script in busybox, which is all that the image of pause holds."""
    container = {
        "name": "main",
        "image": images.PAUSE.reference,
        "imagePullPolicy": "Never",
        "command": ["sh", "-c", script],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [container], **spec},
    }


def ended(kubectl: Kubectl, name: str) -> str:
    """The phase of a pod that ended."""

    def phase() -> str | None:
        phase_ = kubectl.get("pod", name)["status"].get("phase", "")
        return phase_ if phase_ in ("Succeeded", "Failed") else None

    return str(eventually(phase, f"pod {name} ends"))


def test_a_pod_runs_and_its_log_is_read(kubectl: Kubectl) -> None:
    kubectl.apply(pod("speaker", "echo from the node; exit 3"))
    assert ended(kubectl, "speaker") == "Failed"
    assert kubectl("logs", "speaker") == "from the node\n"
    state = kubectl.get("pod", "speaker")["status"]["containerStatuses"][0]["state"]
    assert state["terminated"]["exitCode"] == 3
    assert kubectl.get("pod", "speaker")["spec"]["nodeName"] == NAME


def test_a_command_runs_in_a_pod(kubectl: Kubectl) -> None:
    kubectl.apply(pod("listener", "exec sleep 600"))
    eventually(lambda: kubectl.get("pod", "listener")["status"].get("phase") == "Running", "the pod runs")
    assert kubectl("exec", "listener", "--", "echo", "inside") == "inside\n"


def test_pods_find_each_other_by_the_names_of_a_headless_service_and_of_a_service(kubectl: Kubectl) -> None:
    serve = "mkdir -p /srv; echo served > /srv/index.html; exec httpd -f -p 8000 -h /srv"
    server = pod("server", serve, hostname="first", subdomain="peers")
    service: Document = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "peers"},
        "spec": {"selector": {"app": "server"}, "clusterIP": "None", "publishNotReadyAddresses": True,
                 "ports": [{"port": 8000}]},
    }  # fmt: skip
    balanced = {**service, "metadata": {"name": "balanced"}, "spec": {**service["spec"], "clusterIP": None}}
    kubectl.apply(service, balanced, server)
    ask = "; ".join(
        f"until wget -qO- http://{host}:8000 2> /dev/null; do sleep 0.2; done" for host in ("first.peers", "balanced")
    )
    kubectl.apply(pod("client", ask, activeDeadlineSeconds=60))
    assert ended(kubectl, "client") == "Succeeded"
    assert kubectl("logs", "client") == "served\nserved\n"


def test_too_much_memory_is_an_oom_kill(kubectl: Kubectl) -> None:
    hungry = pod("hungry", "exec tail -c 200m /dev/zero")
    hungry["spec"]["containers"][0]["resources"] = {"limits": {"memory": "32Mi"}}
    kubectl.apply(hungry)
    assert ended(kubectl, "hungry") == "Failed"
    state = kubectl.get("pod", "hungry")["status"]["containerStatuses"][0]["state"]
    assert (state["terminated"]["reason"], state["terminated"]["exitCode"]) == ("OOMKilled", 137)


def test_pods_reach_the_api_server_but_nobody_else_does(node_cluster: Node, kubectl: Kubectl) -> None:
    """It listens on the pods' bridge only."""
    assert node_cluster.control_plane.server.startswith(f"https://{BRIDGE_IP}:")
    kubectl.apply(pod("asker", "exec nc -w 5 10.96.0.1 443 < /dev/null"))
    assert ended(kubectl, "asker") == "Succeeded"
