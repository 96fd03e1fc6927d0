"""The fixtures of the test cluster, for the tests in this folder."""

from __future__ import annotations

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
from tests.support.kwok_env import env
from tests.support.node_env import installed, node_env

__all__ = [
    "control_plane",
    "crd",
    "env",
    "installed",
    "kubectl",
    "kueue",
    "kwok_cluster",
    "namespace",
    "node_cluster",
    "node_env",
    "operator_image",
    "shared_cluster",
    "stage_image",
]
