"""The fixtures of the test cluster, for the tests in this folder."""

from __future__ import annotations

from tests.cluster.chart_fixtures import cluster_helm, helm, home, own_cluster, own_kwok, own_shared_cluster, team
from tests.cluster.fixtures import (
    control_plane,
    crd,
    kubectl,
    kueue,
    kwok_cluster,
    namespace,
    node_cluster,
    operator_image,
    shared_cluster,
    stage_image,
)
from tests.cluster.lab import installed, lab
from tests.cluster.world import world

__all__ = [
    "cluster_helm",
    "control_plane",
    "crd",
    "helm",
    "home",
    "installed",
    "kubectl",
    "kueue",
    "kwok_cluster",
    "lab",
    "namespace",
    "node_cluster",
    "operator_image",
    "own_cluster",
    "own_kwok",
    "own_shared_cluster",
    "shared_cluster",
    "stage_image",
    "team",
    "world",
]
