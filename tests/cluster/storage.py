"""A default StorageClass for the real node: rancher's local-path-provisioner, as a process beside the API server.

It makes a folder on the node for each claim, by a pod, once the first pod that wants the claim is scheduled
(WaitForFirstConsumer), and gives it to that node (ReadWriteOnce).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from tests.cluster import images, tools

if TYPE_CHECKING:
    from tests.cluster.node import Node

NAME = "local-path"
NAMESPACE = "kube-system"
_PROVISIONER = "rancher.io/local-path"


def start(node: Node) -> None:
    """Starts the provisioner, unless somebody did."""
    cluster = node.control_plane
    if cluster.processes.alive(NAME):
        return
    binary = tools.ensure(["local-path-provisioner"])["local-path-provisioner"]
    folder = node.folder / "storage"
    folder.mkdir(exist_ok=True)
    settings = {"nodePathMap": [{"node": "DEFAULT_PATH_FOR_NON_LISTED_NODES", "paths": [str(folder / "volumes")]}]}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "helper-pod"},
        "spec": {
            "priorityClassName": "system-node-critical",
            "containers": [{"name": "helper-pod", "image": images.PAUSE.reference, "imagePullPolicy": "Never"}],
        },
    }
    files = {
        "config.json": json.dumps(settings),
        "helperPod.yaml": json.dumps(pod),
        "setup": '#!/bin/sh\nset -eu\nmkdir -m 0777 -p "$VOL_DIR"\n',
        "teardown": '#!/bin/sh\nset -eu\nrm -rf "$VOL_DIR"\n',
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    objects = [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "local-path-config", "namespace": NAMESPACE},
            "data": files,
        },
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": NAME, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
            "provisioner": _PROVISIONER,
            "volumeBindingMode": "WaitForFirstConsumer",
            "reclaimPolicy": "Delete",
        },
    ]
    cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))
    command: list[str | Path] = [
        binary,
        "start",
        f"--kubeconfig={cluster.user_kubeconfig(NAME, ['system:masters'])}",
        f"--config={folder / 'config.json'}",
        f"--helper-pod-file={folder / 'helperPod.yaml'}",
        f"--helper-image={images.PAUSE.reference}",
        f"--namespace={NAMESPACE}",
        "--configmap-name=local-path-config",
        "--service-account-name=default",
    ]
    environment = {"CONFIG_MOUNT_PATH": str(folder)}
    cluster.processes.start(NAME, command, environment)
