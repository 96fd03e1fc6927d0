"""Kueue's manager as a process beside the test cluster. Its webhooks act in namespaces that ask for it, in no other.

with kueue.queue(namespace, slots=1) as queue:
    ...  # a Job with the label kueue.x-k8s.io/queue-name: <queue.name> waits there for one of the GPUs
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import yaml

from tests.cluster import tools
from tests.cluster.control_plane import LOOPBACK, ControlPlane
from tests.support.ports import free_port

START_SECONDS = 180.0
#: Only the Jobs of namespaces with this label go through the webhooks: tests beside these need no Kueue that answers.
MANAGED = "kueue.medgr2.io/managed"
USER = "kueue-manager"
FLAVOR = "any"
#: Of what everybody has enough.
PLENTY = {"cpu": "1000", "memory": "1000Gi"}
GPU = "nvidia.com/gpu"
Manifest = dict[str, Any]


class Kueue:
    """Kueue in a running control plane; ends with it."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self.control_plane = control_plane

    def start(self) -> None:
        """Starts the manager and returns when its webhooks answer."""
        binary = tools.ensure(["kueue"])["kueue"]
        manifests = tools.manifests_of("kueue")
        crds = str(manifests / "crd" / "bases")
        self.control_plane.kubectl("apply", "--server-side", "-f", crds)
        self.control_plane.established("-f", crds)
        role = yaml.safe_load((manifests / "rbac" / "role.yaml").read_text())
        self._apply({**role, "metadata": {"name": USER}}, _binding())
        port = free_port()
        config = self.control_plane.folder / "kueue.yaml"
        config.write_text(json.dumps(self._config(port)))
        kubeconfig = self.control_plane.user_kubeconfig(USER)
        self.control_plane.processes.start("kueue", [binary, f"--kubeconfig={kubeconfig}", f"--config={config}"])
        webhooks = yaml.safe_load_all((manifests / "webhook" / "manifests.yaml").read_text())
        self._apply(*(self._reachable(webhook, port) for webhook in webhooks))
        self.control_plane.processes.wait("kueue", self._answers, START_SECONDS)

    def running(self) -> bool:
        return self.control_plane.processes.alive("kueue")

    @contextmanager
    def queue(self, namespace: str, slots: int = 1) -> Iterator[Queue]:
        """A ClusterQueue of so many GPUs with a LocalQueue in the namespace, which asks for Kueue from now on."""
        queue = Queue(self.control_plane, namespace, slots)
        queue.create()
        yield queue
        queue.delete()

    def _config(self, port: int) -> Manifest:
        """Listens on loopback with its webhooks, and nowhere else."""
        certificates = self.control_plane.serving_certificate("kueue")
        return {
            "apiVersion": "config.kueue.x-k8s.io/v1beta1",
            "kind": "Configuration",
            "webhook": {"host": LOOPBACK, "port": port, "certDir": str(certificates)},
            "health": {"healthProbeBindAddress": "0"},
            "metrics": {"bindAddress": "0"},
            "internalCertManagement": {"enable": False},
            "leaderElection": {"leaderElect": False},
            "featureGates": {"VisibilityOnDemand": False, "MultiKueue": False, "ProvisioningACC": False},
            "manageJobsWithoutQueueName": False,
            "integrations": {"frameworks": ["batch/job"]},
            "clientConnection": {"qps": 500, "burst": 1000},  # the tests wait for the operator, not for this
        }

    def _reachable(self, configuration: Manifest, port: int) -> Manifest:
        """The webhooks for Jobs and for Kueue's own objects, at the manager's address."""
        authority = base64.b64encode(self.control_plane.ca.read_bytes()).decode()
        kept = []
        for webhook in configuration["webhooks"]:
            (rule,) = webhook["rules"]
            path = webhook["clientConfig"]["service"]["path"]
            webhook["clientConfig"] = {"url": f"https://{LOOPBACK}:{port}{path}", "caBundle": authority}
            if rule["apiGroups"] == ["batch"]:
                webhook["namespaceSelector"] = {"matchLabels": {MANAGED: "true"}}
            if rule["apiGroups"] in (["batch"], ["kueue.x-k8s.io"]):
                kept.append(webhook)
        name = f"kueue-{configuration['metadata']['name']}"
        return {**configuration, "metadata": {"name": name}, "webhooks": kept}

    def _answers(self) -> bool:
        """The webhook for flavors lets ours pass."""
        flavor = {"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": "ResourceFlavor", "metadata": {"name": FLAVOR}}
        output = self.control_plane.kubectl("apply", "-f", "-", stdin=json.dumps(flavor), check=False)
        return f"{FLAVOR} created" in output or f"{FLAVOR} unchanged" in output

    def _apply(self, *documents: Manifest) -> None:
        self.control_plane.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(documents))


class Queue:
    """A ClusterQueue of a namespace's own and the LocalQueue that leads to it."""

    name = "gpu"
    """Of the LocalQueue."""

    def __init__(self, control_plane: ControlPlane, namespace: str, slots: int) -> None:
        self._control_plane, self._namespace, self._slots = control_plane, namespace, slots
        self._classes: list[str] = []

    def create(self) -> None:
        quota = [{"name": name, "nominalQuota": amount} for name, amount in {**PLENTY, GPU: self._slots}.items()]
        flavors = [{"name": FLAVOR, "resources": quota}]
        spec = {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self._namespace}},
            "preemption": {"withinClusterQueue": "LowerPriority"},
            "resourceGroups": [{"coveredResources": [entry["name"] for entry in quota], "flavors": flavors}],
        }
        self._control_plane.kubectl("label", "namespace", self._namespace, f"{MANAGED}=true")
        self._apply({**_kueue("ClusterQueue", self._namespace), "spec": spec})
        self.add_local(self.name)

    def add_local(self, name: str) -> None:
        """One more LocalQueue."""
        manifest = _kueue("LocalQueue", name)
        manifest["metadata"]["namespace"] = self._namespace
        self._apply({**manifest, "spec": {"clusterQueue": self._namespace}})

    def priority(self, title: str, value: int) -> str:
        """The name of a new WorkloadPriorityClass."""
        name = f"{self._namespace}-{title}"
        self._apply({**_kueue("WorkloadPriorityClass", name), "value": value})
        self._classes.append(name)
        return name

    def stop(self) -> None:
        """Takes all quota back and gives none."""
        self._set_policy("HoldAndDrain")

    def go_on(self) -> None:
        """Gives quota again."""
        self._set_policy("None")

    def delete(self) -> None:
        """The ClusterQueue goes when nothing is admitted any more."""
        self._control_plane.kubectl("delete", "clusterqueue", self._namespace, "--wait=false")
        for name in self._classes:
            self._control_plane.kubectl("delete", "workloadpriorityclass", name, "--wait=false")

    def _set_policy(self, policy: str) -> None:
        change = json.dumps({"spec": {"stopPolicy": policy}})
        self._control_plane.kubectl("patch", "clusterqueue", self._namespace, "--type=merge", "-p", change)

    def _apply(self, document: Mapping[str, Any]) -> None:
        self._control_plane.kubectl("apply", "-f", "-", stdin=json.dumps(document))


def _kueue(kind: str, name: str) -> Manifest:
    return {"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": kind, "metadata": {"name": name}}


def _binding() -> Manifest:
    group = "rbac.authorization.k8s.io"
    return {
        "apiVersion": f"{group}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": USER},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": USER},
        "subjects": [{"apiGroup": group, "kind": "User", "name": USER}],
    }
