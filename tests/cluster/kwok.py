"""Level 2: nodes with 1000 GPUs each, and pods that only pretend to run.

What a pod does is chosen by annotations on it (`behaviour()` writes them); all are text, all are optional:

    kwok.medgr2.io/…  meaning                                                                      default
    start-delay-ms    from scheduled to running                                                    0
    delay-ms          from running to ended                                                        200
    exit-code         of every container                                                           0
    reason            of the containers' end, such as OOMKilled                                    Completed or Error
    message           termination message, word for word; empty: none                              a StageResult (JSON)
    result            JSON that goes over the default StageResult
    checkpoint-step   of the default StageResult                                                   -1
    run               forever: the pod never ends by itself (nor does one that always restarts)
    waiting           the pod never starts, for this reason: ImagePullBackOff, …
    sidecar-restarts  so often do the sidecars crash; the pod does not end                         0
    pod-reason        the kubelet ends the pod so (Evicted), with the condition DisruptionTarget
    term-delay-ms     from deletion (SIGTERM) to the end                                           100
    term-exit-code    of a pod that was deleted while it ran                                       143
    term-message      its message; the default is a StageResult, and none for 143
    pod-ip            its address                                                                  one in 127.64.0.0/16

`<name>.a2` holds in attempt 2 of a stage only. The default StageResult takes the input hash from the container's
StageRequest. Pods' addresses are on loopback: a test can serve there what a pod would serve.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import kubernetes.client
import yaml

from tests.cluster import tools
from tests.cluster.control_plane import ControlPlane
from tests.cluster.kwok_stages import MANAGED, PREFIX, stages

POD_NETWORK = "127.64.0.0/16"
GPUS = 1000
#: Key of the taint of a node that a test added for itself; the value is the node's name.
OWN_NODE = "kwok.medgr2.io/own"
NODES = ("kwok-0", "kwok-1")
START_SECONDS = 180.0
#: As a kubelet has it; kwok renews four times as often.
LEASE_SECONDS = 40

_NAMES = frozenset(
    {
        "start-delay-ms", "delay-ms", "exit-code", "reason", "message", "result", "checkpoint-step", "run", "waiting",
        "sidecar-restarts", "pod-reason", "term-delay-ms", "term-exit-code", "term-message", "pod-ip",
    }
)  # fmt: skip


def behaviour(attempt: int | None = None, **values: Any) -> dict[str, str]:
    """The annotations of a pod that behaves so: `behaviour(exit_code=75, attempt=1)`.

    Raises:
        ValueError: there is no such behaviour.
    """
    suffix = "" if attempt is None else f".a{attempt}"
    annotations = {}
    for name, value in values.items():
        key = name.replace("_", "-")
        if key not in _NAMES:
            raise ValueError(f"no such behaviour: {name}; known are {', '.join(sorted(_NAMES))}")
        annotations[f"{PREFIX}{key}{suffix}"] = json.dumps(value) if isinstance(value, Mapping) else str(value)
    return annotations


def tolerates(node: str) -> dict[str, str]:
    """The toleration of a pod that may go to a node which a test added."""
    return {"key": OWN_NODE, "value": node, "effect": "NoSchedule"}


def ending_now() -> list[str]:
    """Annotations that let a pod end which was made to run for ever, in its first attempt or in all."""
    once = {**behaviour(run="once"), **behaviour(attempt=1, run="once")}
    return [f"{key}={value}" for key, value in once.items()]


class Kwok:
    """Simulated nodes in a running control plane; ends with it."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self.control_plane = control_plane
        self._config = control_plane.folder / "kwok.yaml"

    def start(self, nodes: Sequence[str] = NODES) -> None:
        """Starts kwok and returns when the nodes are ready."""
        binary = tools.ensure(["kwok"])["kwok"]
        self._config.write_text(yaml.safe_dump_all(stages(), width=10_000))
        kubeconfig = self.control_plane.user_kubeconfig("kwok", ["system:masters"])
        command: list[str | Path] = [
            binary,
            f"--kubeconfig={kubeconfig}",
            f"--config={self._config}",
            f"--manage-nodes-with-label-selector={MANAGED}=true",
            f"--node-lease-duration-seconds={LEASE_SECONDS}",
            f"--cidr={POD_NETWORK}",
        ]
        self.control_plane.processes.start("kwok", command)
        for name in nodes:
            self._create_node(name)
        self.control_plane.processes.wait("kwok", lambda: all(self.is_ready(name) for name in nodes), START_SECONDS)

    def running(self) -> bool:
        return self.control_plane.processes.alive("kwok")

    def stop(self) -> None:
        self.control_plane.processes.stop("kwok")

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def add_node(self, name: str, labels: Mapping[str, str] | None = None) -> None:
        """A node for the pods that tolerate it (`tolerates`), and for no other test's."""
        self._create_node(name, labels, [tolerates(name)])

    def _create_node(
        self, name: str, labels: Mapping[str, str] | None = None, taints: Sequence[Mapping[str, str]] = ()
    ) -> None:
        metadata = {
            "name": name,
            "annotations": {
                "kwok.x-k8s.io/node": "fake",
                "volumes.kubernetes.io/controller-managed-attach-detach": "true",  # as a kubelet says
            },
            "labels": {MANAGED: "true", "kubernetes.io/hostname": name, **(labels or {})},
        }
        spec = {"taints": list(taints)}
        self._core.create_node({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec})

    def remove_node(self, name: str) -> None:
        self._core.delete_node(name)

    def is_ready(self, name: str) -> bool:
        conditions = self._core.read_node(name).status.conditions or []
        return any(condition.type == "Ready" and condition.status == "True" for condition in conditions)

    def unreachable(self, name: str, *, at_once: bool = True) -> None:
        """Nobody answers for this node any more: its heartbeats end, its pods stay as they are, even when deleted.

        Kubernetes finds out after 50 seconds, or, `at_once`, by a status of our making. A pod whose end was already due
        (`delay-ms`) still ends; take `run=forever` where that matters.
        """
        self._core.patch_node(name, {"metadata": {"labels": {MANAGED: None}}})
        if at_once:
            now = datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")
            condition = {
                "type": "Ready",
                "status": "Unknown",
                "reason": "NodeStatusUnknown",
                "message": "Kubelet stopped posting node status.",
                "lastHeartbeatTime": now,
                "lastTransitionTime": now,
            }
            self._core.patch_node_status(name, {"status": {"conditions": [condition]}})

    def reachable(self, name: str, seconds: float = START_SECONDS) -> None:
        """The node is back; returns when it is ready and takes pods again."""
        self._core.patch_node(name, {"metadata": {"labels": {MANAGED: "true"}}})
        deadline = time.monotonic() + seconds
        while not self.is_ready(name) or self._is_tainted(name):
            if time.monotonic() > deadline:
                raise TimeoutError(f"node {name} did not come back within {seconds:.0f} s")
            time.sleep(0.1)

    def _is_tainted(self, name: str) -> bool:
        """Whether Kubernetes keeps pods away from it."""
        taints = self._core.read_node(name).spec.taints or []
        return any(taint.key.startswith("node.kubernetes.io/") for taint in taints)

    @property
    def _core(self) -> Any:  # its types know neither documents nor that what the server sends is there
        return kubernetes.client.CoreV1Api(self.control_plane.client())
