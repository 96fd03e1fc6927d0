"""The custom resources of the Prometheus Operator, which our chart can make objects of. Not the operator itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from tests.cluster import tools
from tests.cluster.control_plane import ControlPlane

MODULE, VERSION = "github.com/prometheus-operator/prometheus-operator", "v0.82.2"
KINDS = ("podmonitors", "prometheusrules", "servicemonitors")


def install(control_plane: ControlPlane) -> None:
    """Has the API server serve them."""
    for path in _files():
        control_plane.kubectl("apply", "--server-side", "-f", str(path))
    control_plane.established(*(f"crd/{kind}.monitoring.coreos.com" for kind in KINDS))


def _files() -> list[Path]:
    """The CRDs, from the module's source; kept beside the tools."""
    folder = tools.cache() / "tools" / f"prometheus-operator-{VERSION}"
    names = [f"monitoring.coreos.com_{kind}.yaml" for kind in KINDS]
    if not all((folder / name).exists() for name in names):
        folder.mkdir(parents=True, exist_ok=True)
        command = [tools.go(), "mod", "download", "-json", f"{MODULE}@{VERSION}"]
        environment = {**os.environ, "GOFLAGS": "", "GOWORK": "off"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise tools.ToolError(f"{MODULE}: {done.stdout}{done.stderr}")
        source = Path(json.loads(done.stdout)["Dir"]) / "example" / "prometheus-operator-crd"
        for name in names:
            shutil.copyfile(source / name, folder / f".{name}")
            (folder / f".{name}").replace(folder / name)
    return [folder / name for name in names]
