"""Helm, and the operator as our chart installs it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import tools
from tests.cluster.control_plane import ControlPlane
from tests.cluster.operator import Operator

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "medgr2-operator"
RELEASE = "medgr2-operator"
HELM_SECONDS = 360
READY_SECONDS = 300
Document = dict[str, Any]


class HelmError(RuntimeError):
    """Helm refused; the message is what it said."""


class Helm:
    """Helm with a home of its own, so that no user's repositories or plugins take part."""

    def __init__(self, home: Path, kubeconfig: Path | None = None) -> None:
        folders = {f"HELM_{name}_HOME": str(home / name.lower()) for name in ("CACHE", "CONFIG", "DATA")}
        self._environment = {**os.environ, **folders, "KUBECONFIG": str(kubeconfig or home / "no-cluster")}
        self._values = home / "values.json"

    def __call__(self, *arguments: str, values: Mapping[str, Any] | None = None) -> str:
        """What Helm prints.

        Raises:
            HelmError: it failed.
        """
        given: Sequence[str] = ()
        if values is not None:
            self._values.write_text(json.dumps(values))
            given = ("--values", str(self._values))
        done = subprocess.run(
            [str(tools.ensure(["helm"])["helm"]), *arguments, *given],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=HELM_SECONDS,
            check=False,
        )
        if done.returncode:
            raise HelmError(done.stderr.strip() + done.stdout.strip())
        return done.stdout

    def install(self, namespace: str, *arguments: str, values: Mapping[str, Any] | None = None) -> None:
        """Our chart as RELEASE, or an upgrade of it; returns when all of its pods are ready."""
        wait = ("--wait", f"--timeout={READY_SECONDS}s", "--namespace", namespace)
        self("upgrade", "--install", RELEASE, str(CHART), *wait, *arguments, values=values or {})

    def uninstall(self, namespace: str) -> None:
        self("uninstall", RELEASE, "--namespace", namespace, "--wait", f"--timeout={READY_SECONDS}s")

    def template(
        self, values: Mapping[str, Any], *arguments: str, chart: Path = CHART, namespace: str = "medgr2"
    ) -> list[Document]:
        """The objects that an installation would create."""
        text = self("template", RELEASE, str(chart), "--namespace", namespace, *arguments, values=values)
        return [document for document in yaml.safe_load_all(text) if document]


def only(documents: Sequence[Document], kind: str, name: str = "") -> Document:
    """The one object of that kind, and name where one is given."""
    (document,) = (d for d in documents if d["kind"] == kind and name in ("", d["metadata"]["name"]))
    return document


def environment(deployment: Document, pod: str) -> dict[str, str]:
    """The variables that the operator's container would have in a pod of that name."""
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    fields = {"metadata.name": pod, "metadata.namespace": deployment["metadata"]["namespace"]}
    return {
        variable["name"]: fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        if "valueFrom" in variable
        else variable.get("value", "")  # the API server leaves empty ones out
        for variable in container["env"]
    }


class InstalledOperator(Operator):
    """A replica with what the installed Deployment gives its pods: the environment, and the ServiceAccount's token."""

    def __init__(self, control_plane: ControlPlane, folder: Path, namespace: str, name: str = "operator-0") -> None:
        super().__init__(control_plane, folder, namespace, name)
        deployment = control_plane.kubectl("get", "deployment", RELEASE, "-n", namespace, "-o", "json")
        self._deployment: Document = json.loads(deployment)
        account = self._deployment["spec"]["template"]["spec"]["serviceAccountName"]
        self.user = f"system:serviceaccount:{namespace}:{account}"
        self.kubeconfig = control_plane.service_account_kubeconfig(namespace, account)

    def start(self, **settings: str) -> InstalledOperator:
        """Starts it with the chart's variables; only the port is another, as many replicas share one computer."""
        prefix = "MEDGR2_OPERATOR_"
        given = {
            name.removeprefix(prefix).lower(): value for name, value in environment(self._deployment, self.name).items()
        }
        super().start(**{**given, "kubeconfig": str(self.kubeconfig), "port": str(self.port), **settings})
        return self
