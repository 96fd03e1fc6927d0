"""A namespace with cycles and the operator as the chart installed it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.control_plane import ControlPlane
from tests.cluster.fixtures import Document, Kubectl, eventually
from tests.cluster.helm import InstalledOperator
from tests.support.kwok_env import KwokEnv

#: Of a claim that a cycle `loop` makes from `CLAIM_TEMPLATE`.
CLAIM = "loop-workspace"
CLAIM_TEMPLATE: Document = {
    "spec": {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "",
        "resources": {"requests": {"storage": "1Gi"}},
    }
}


class ChartEnv(KwokEnv):
    """One test's part of a cluster, run by an installed operator."""

    def __init__(self, control_plane: ControlPlane, namespace: str, folder: Path, home: str) -> None:
        self.home = home
        super().__init__(control_plane, Kubectl(control_plane, namespace), namespace, folder)

    def replica(self, name: str) -> InstalledOperator:
        """Another replica, not started."""
        operator = InstalledOperator(self.control_plane, self.folder, self.home, name)
        self.operators.append(operator)
        return operator

    def make_volume(self) -> None:
        """A volume for the claim that a cycle `loop` makes."""
        spec = {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "",
            "capacity": {"storage": "1Gi"},
            "hostPath": {"path": "/nowhere"},
            "claimRef": {"namespace": self.namespace, "name": CLAIM},
        }
        name = f"{self.namespace}-{CLAIM}"
        self.kubectl.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec})

    def close(self) -> None:
        super().close()
        self.kubectl("delete", "pv", f"{self.namespace}-{CLAIM}", "--wait=false", "--ignore-not-found")

    def deleted(self, name: str = "loop") -> None:
        """Deletes a cycle and returns when it is gone with all that it had."""
        self.kubectl("delete", "medgr2cycle", name, "--wait=false")
        selector = f"medgr2.io/cycle={name}"
        eventually(
            lambda: not self.kubectl.get("medgr2cycles,jobs,pods,services", "-l", selector)["items"],
            f"nothing is left of {name}",
            120,
        )


@contextmanager
def chart_env(control_plane: ControlPlane, namespace: str, folder: Path, home: str) -> Iterator[ChartEnv]:
    """The namespace with a claim; the operator, which the chart installed in `home`, is not started yet."""
    env = ChartEnv(control_plane, namespace, folder, home)
    try:
        env.make_claim()
        yield env
    finally:
        env.close()
