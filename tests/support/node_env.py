"""A namespace on the real node, with the operator that Helm installed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kubernetes.client
import pytest

from tests.cluster.cluster_lock import locked
from tests.cluster.fixtures import Document, Kubectl, eventually
from tests.cluster.helm import RELEASE, Helm
from tests.cluster.node import Node

HOME = "medgr2-system"
#: The namespace that the operator watches.
NAMESPACE = "lab"
_RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"


class NodeEnv:
    """The namespace as a user works in it, with kubectl."""

    def __init__(self, node: Node, namespace: str) -> None:
        self.node, self.namespace = node, namespace
        self.kubectl = Kubectl(node.control_plane, namespace)
        self._objects = kubernetes.client.CustomObjectsApi(node.control_plane.client())
        self._core = kubernetes.client.CoreV1Api(node.control_plane.client())

    def cycle(self, name: str) -> Document:
        cycle: Document = self._objects.get_namespaced_custom_object(
            "medgr2.io", "v1alpha1", self.namespace, "medgr2cycles", name
        )
        return cycle

    def status(self, name: str) -> Document:
        status: Document = self.cycle(name).get("status", {})
        return status

    def patch(self, name: str, spec: Document) -> None:
        change = json.dumps({"spec": spec})
        self.kubectl("patch", "medgr2cycle", name, "--type=merge", "-p", change)

    def wait(self, name: str, condition: str, seconds: int) -> None:
        """As a user does: `kubectl wait`. Shows what the cycle and its pods say when the condition does not come."""
        with self._told(name):
            eventually(lambda: self._holds(name, condition) or self._has_ended(name), f"{condition} of {name}", seconds)
            self.kubectl("wait", f"--for=condition={condition}", f"medgr2cycle/{name}", "--timeout=1s")

    def until_stage(self, name: str, stage: str, state: str, seconds: int) -> None:
        """Until a stage of the first iteration is in this state."""

        def reached() -> bool:
            return bool(self.stage(name, stage).get("state") == state)

        with self._told(name):
            eventually(lambda: reached() or self._has_ended(name), f"{stage} is {state}", seconds)
            assert reached(), f"{name} ended before {stage} was {state}"

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """If the block fails: what the cycle and its pods say."""
        try:
            yield
        except BaseException:
            print(json.dumps(self.status(name), indent=1)[-6000:])
            for pod in self.pods():
                log = ("-n", self.namespace, "logs", pod, "--all-containers", "--tail=20")
                print(f"--- {pod}", self.node.control_plane.kubectl(*log, check=False), sep="\n")
            raise

    def stage(self, name: str, stage: str, iteration: int = 1) -> Document:
        """A stage's record; empty before it has one."""
        stages = self.status(name).get("stages", [])
        return next((s for s in stages if (s["name"], s["iteration"]) == (stage, iteration)), {})

    def digests(self, name: str) -> dict[str, str]:
        """Output digest of every stage, as `loop_fixtures.Loop` has them."""
        return {f"{s['name']}@{s['iteration']}": s.get("outputDigest", "") for s in self.status(name)["stages"]}

    def claim(self, name: str) -> None:
        """A claim that is bound before a pod wants it; one that is there stays as it is."""
        if f"persistentvolumeclaim/{name}" in self.kubectl("get", "pvc", "-o", "name").split():
            return
        common = {"accessModes": ["ReadWriteOnce"], "storageClassName": ""}
        source = {"hostPath": {"path": str(self.node.folder_for(name))}}
        reserved = {"claimRef": {"namespace": self.namespace, "name": name}}  # nobody else's claim may have it
        volume = {**common, **reserved, "capacity": {"storage": "1Gi"}, **source}
        claim = {**common, "resources": {"requests": {"storage": "1Gi"}}, "volumeName": name}
        self.kubectl.apply(
            {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": volume},
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": claim},
        )

    def folder(self, claim: str) -> Path:
        """The folder of this computer that is a claim's volume."""
        volume = self.kubectl.get("pvc", claim)["spec"]["volumeName"]
        spec = self.kubectl.get("pv", volume)["spec"]
        return Path((spec.get("hostPath") or spec["local"])["path"])

    def manifest(self, claim: str, cycle: str, stage: str, iteration: int = 1) -> Document:
        """What a stage published."""
        folder = self.folder(claim) / "cycles" / cycle / "iterations" / f"i{iteration:03d}" / stage
        manifest: Document = json.loads((folder / "manifest.json").read_text())
        return manifest

    def headless_service(self) -> Document | None:
        """The Service by which the pods of a training find each other."""
        services = self.kubectl.get("services")["items"]
        return next((service for service in services if service["spec"].get("clusterIP") == "None"), None)

    def pods(self) -> list[str]:
        return [pod.metadata.name for pod in self._core.list_namespaced_pod(self.namespace).items]

    def running_pods(self) -> list[str]:
        pods = self._core.list_namespaced_pod(self.namespace).items
        return [pod.metadata.name for pod in pods if pod.status.phase not in ("Succeeded", "Failed")]

    def _has_ended(self, name: str) -> bool:
        """Nothing more will come of it."""
        return self.status(name).get("phase") in ("Complete", "Failed", "Invalid")

    def _holds(self, name: str, condition: str) -> bool:
        conditions = self.status(name).get("conditions", [])
        return any((c["type"], c["status"]) == (condition, "True") for c in conditions)


@pytest.fixture(scope="module")
def installed(
    node_cluster: Node, operator_image: str, stage_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Node:
    """The node's cluster with our chart in it; it watches one namespace: other tests have cycles that nobody runs."""
    cluster = node_cluster.control_plane
    helm = Helm(tmp_path_factory.mktemp("helm"), cluster.kubeconfig)
    with locked():  # another process of this test run may want the same
        for name in (HOME, NAMESPACE):
            cluster.kubectl("create", "namespace", name, check=False)
            cluster.kubectl("label", "namespace", name, "--overwrite", _RESTRICTED)
        settings = {**values(operator_image, stage_image), "watchNamespaces": [NAMESPACE]}
        helm.install(HOME, "--take-ownership", values=settings)  # of the CRD, which other tests need, too
    return node_cluster


def values(operator_image: str, stage_image: str) -> dict[str, Any]:
    """The chart's values with our images."""
    images = {}
    for name, reference in (("image", operator_image), ("stageImage", stage_image)):
        repository, tag = reference.rsplit(":", 1)
        images[name] = {"repository": repository, "tag": tag, "pullPolicy": "Never"}
    return images


@pytest.fixture
def node_env(installed: Node) -> Iterator[NodeEnv]:
    """The namespace, empty but for what earlier tests left on its volumes."""
    env = NodeEnv(installed, NAMESPACE)
    yield env
    env.kubectl("delete", "medgr2cycles", "--all", "--wait=false")  # its stages would take the next test's time


def operator_pods(node: Node) -> list[str]:
    """Names of the operator's pods."""
    selector = f"app.kubernetes.io/instance={RELEASE}"
    core = kubernetes.client.CoreV1Api(node.control_plane.client())
    return [pod.metadata.name for pod in core.list_namespaced_pod(HOME, label_selector=selector).items]
