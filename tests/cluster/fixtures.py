"""pytest fixtures that give a test a real cluster. `conftest.py` beside the tests imports them.

There is one cluster per test run, shared by pytest-xdist's workers (see `shared.py`), and a namespace per test.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import kubernetes.client
import pytest
import yaml

from tests.cluster import images, system
from tests.cluster.cluster_lock import SharedCluster
from tests.cluster.control_plane import ControlPlane
from tests.cluster.kueue import Kueue
from tests.cluster.kwok import Kwok
from tests.cluster.node import NODE_SETTINGS, Node

CRD = Path(__file__).parents[2] / "crds" / "medgr2.io_medgr2cycles.yaml"
NAMESPACE_SECONDS = 60.0
#: How much slower a machine with tests of real training beside these, on the same two cores, may be.
PATIENCE = 4.0
#: Between two questions of `eventually`, in seconds.
LONGEST_PAUSE = 1.0
#: Longest name of a test within a namespace's name.
NAME_LENGTH = 40
Document = dict[str, Any]
Value = TypeVar("Value")


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[SharedCluster]:
    """This process's use of the run's cluster."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(os.getpid())
    cluster = SharedCluster(f"test-{run}")
    cluster.join()
    yield cluster
    cluster.leave()


@pytest.fixture(scope="session")
def control_plane(shared_cluster: SharedCluster) -> ControlPlane:
    """Level 1: the API server and its controllers. Pods only run once somebody asked for `kwok_cluster`."""
    return shared_cluster.control_plane


@pytest.fixture(scope="session")
def kwok_cluster(shared_cluster: SharedCluster) -> Kwok:
    """Level 2: the same cluster, with nodes on which pods pretend to run."""
    return shared_cluster.kwok()


@pytest.fixture(scope="module")
def node_cluster() -> Iterator[Node]:
    """Level 3: a cluster of its own, with one real node. Tests that need it are left out where none can run.

    Gone with the last file that needs it (they run side by side, see tests/conftest.py): a node is never quite idle.
    """
    if obstacle := system.obstacle():
        pytest.skip(obstacle)
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(os.getpid())
    cluster = SharedCluster(f"node-{run}", NODE_SETTINGS)
    system.install()
    cluster.join()
    yield cluster.node()
    cluster.leave()


@pytest.fixture(scope="module")
def stage_image(node_cluster: Node) -> str:
    """The image of the stages, on the node."""
    return node_cluster.import_image(images.JOBS)


@pytest.fixture(scope="module")
def operator_image(node_cluster: Node) -> str:
    """The operator's image, on the node."""
    return node_cluster.import_image(images.OPERATOR)


@pytest.fixture(scope="session")
def kueue(shared_cluster: SharedCluster) -> Kueue:
    """Kueue in that cluster, for the namespaces that ask for it."""
    return shared_cluster.kueue()


@pytest.fixture
def namespace(control_plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh namespace, deleted after the test (its content goes in the background)."""
    with fresh_namespace(control_plane, request.node.name.removeprefix("test_")) as name:
        yield name


@contextmanager
def fresh_namespace(control_plane: ControlPlane, title: str) -> Iterator[str]:
    """A namespace with this title in its name, ready for pods."""
    words = re.sub("[^a-z0-9]+", "-", title.lower())[:NAME_LENGTH].strip("-")
    name = f"{words}-{os.urandom(3).hex()}"
    core = kubernetes.client.CoreV1Api(control_plane.client())  # a kubectl each time would be a tenth of a small test
    core.create_namespace({"metadata": {"name": name}})
    eventually(
        lambda: any(account.metadata.name == "default" for account in core.list_namespaced_service_account(name).items),
        f"the default ServiceAccount of {name}",
        NAMESPACE_SECONDS,
    )
    yield name
    core.delete_namespace(name)


class Kubectl:
    """kubectl in one namespace, as admin."""

    def __init__(self, control_plane: ControlPlane, namespace: str) -> None:
        self._control_plane = control_plane
        self._namespace = namespace

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        """What it prints."""
        return self._control_plane.kubectl("-n", self._namespace, *arguments, stdin=stdin)

    def get(self, *arguments: str) -> Document:
        """An object, or a list of them."""
        document: Document = json.loads(self("get", *arguments, "-o", "json"))
        return document

    def apply(self, *documents: Document) -> None:
        self("apply", "-f", "-", stdin=yaml.safe_dump_all(documents))


@pytest.fixture
def kubectl(control_plane: ControlPlane, namespace: str) -> Kubectl:
    """kubectl in the test's namespace."""
    return Kubectl(control_plane, namespace)


@pytest.fixture(scope="session")
def crd(control_plane: ControlPlane) -> str:
    """The name of our CRD, which is served from now on."""
    return serve_crd(control_plane)


def serve_crd(control_plane: ControlPlane) -> str:
    """Has a cluster serve our CRD; gives its name."""
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
    name = str(yaml.safe_load(CRD.read_text())["metadata"]["name"])
    control_plane.established(f"crd/{name}")
    return name


def eventually(check: Callable[[], Value | None], what: str, seconds: float = 60.0) -> Value:
    """The first true value of `check`; a failure that names `what` when there is none in time.

    Args:
        check: what to ask again and again.
        what: is waited for.
        seconds: on a machine that does nothing else; a busy one gets `PATIENCE` times as much.
    """
    seconds *= PATIENCE
    began = time.monotonic()
    while True:
        value = check()
        if value:
            return value
        waited = time.monotonic() - began
        if waited > seconds:
            pytest.fail(f"not within {seconds:.0f} s: {what}")
        # A question costs processor time, in the API server too, and most as a kubectl; four tests ask at once.
        time.sleep(min(LONGEST_PAUSE, 0.1 + 0.2 * waited))
