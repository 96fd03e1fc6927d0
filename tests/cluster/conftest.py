"""The fixtures of the test cluster, for the tests in this folder."""

from __future__ import annotations

from tests.cluster.fixtures import control_plane, crd, kubectl, kwok_cluster, namespace, shared_cluster
from tests.cluster.world import world

__all__ = ["control_plane", "crd", "kubectl", "kwok_cluster", "namespace", "shared_cluster", "world"]
