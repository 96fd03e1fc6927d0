"""A cluster for the chart alone: what it installs is there once, and its operator sees everybody's cycles."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.cluster_lock import SharedCluster
from tests.cluster.control_plane import ControlPlane
from tests.cluster.fixtures import fresh_namespace
from tests.cluster.helm import Helm
from tests.cluster.kwok import Kwok

RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"


@pytest.fixture(scope="package")
def own_shared_cluster() -> Iterator[SharedCluster]:
    """A cluster of these tests' own, with simulated nodes."""
    cluster = SharedCluster(f"chart-{os.getpid()}")
    cluster.join()
    cluster.kwok()
    yield cluster
    cluster.leave()


@pytest.fixture(scope="package")
def own_cluster(own_shared_cluster: SharedCluster) -> ControlPlane:
    """Its API server."""
    return own_shared_cluster.control_plane


@pytest.fixture(scope="package")
def own_kwok(own_shared_cluster: SharedCluster) -> Kwok:
    """Its nodes."""
    return own_shared_cluster.kwok()


@pytest.fixture
def helm(tmp_path: Path) -> Helm:
    """Helm without a cluster."""
    return Helm(tmp_path)


@pytest.fixture
def home(own_cluster: ControlPlane) -> Iterator[str]:
    """A namespace for the operator."""
    with restricted_namespace(own_cluster, "operator") as name:
        yield name


@pytest.fixture
def team(own_cluster: ControlPlane) -> Iterator[str]:
    """A namespace for cycles."""
    with restricted_namespace(own_cluster, "team") as name:
        yield name


@pytest.fixture
def cluster_helm(own_cluster: ControlPlane, home: str, team: str, tmp_path: Path) -> Iterator[Helm]:
    """Helm as admin of the chart's cluster; what a test left installed, CRD included, goes before its namespaces."""
    helm = Helm(tmp_path, own_cluster.kubeconfig)
    yield helm
    for release in json.loads(helm("list", "--all", "--all-namespaces", "--output", "json")):
        helm("uninstall", release["name"], "--namespace", release["namespace"])
    own_cluster.kubectl("delete", "crd", "medgr2cycles.medgr2.io", "--ignore-not-found", "--timeout=60s")


@contextmanager
def restricted_namespace(control_plane: ControlPlane, title: str) -> Iterator[str]:
    """A namespace that enforces the Pod Security Standard `restricted`."""
    with fresh_namespace(control_plane, title) as name:
        control_plane.kubectl("label", "namespace", name, RESTRICTED)
        yield name
