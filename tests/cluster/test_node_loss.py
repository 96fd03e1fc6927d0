"""A node that falls silent under a running stage: nobody can say what its pod does, and nobody else may write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from medgr2_operator.runtime.observe import LOST_AFTER
from tests.cluster.audit import Event
from tests.cluster.fixtures import eventually
from tests.cluster.kwok import Kwok, behaviour, tolerates
from tests.support.kwok_env import World

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

#: Kubernetes gives a silent node up after 50 s and its pods 5 s later; after their grace we wait a minute more.
LOST_SECONDS = 300
GRACE_SECONDS = 10
SFT = "medgr2.io/stage=sft"


@pytest.fixture
def node(kwok_cluster: Kwok, world: World) -> Iterator[str]:
    """The test's own node."""
    kwok_cluster.add_node(world.namespace)
    eventually(lambda: kwok_cluster.is_ready(world.namespace), "the node is ready")
    yield world.namespace
    kwok_cluster.remove_node(world.namespace)


def prefers(node: str) -> list[dict[str, Any]]:
    """Patches of a Job whose pods go to a node as long as it is there."""
    preference = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}
    affinity = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": preference}]}
    return [
        {"op": "add", "path": "/spec/template/spec/tolerations", "value": [tolerates(node)]},
        {"op": "add", "path": "/spec/template/spec/affinity", "value": {"nodeAffinity": affinity}},
    ]


def test_a_lost_nodes_pod_has_ended_before_another_starts(world: World, kwok_cluster: Kwok, node: str) -> None:
    world.operator.start()
    world.apply(
        annotations_of={"sft": behaviour(attempt=1, run="forever")},
        stages=[{"name": "sft", "patches": prefers(node)}],
        template={"terminationGracePeriodSeconds": GRACE_SECONDS},
    )
    world.running("sft")
    (first,) = world.kubectl.get("pods", "-l", SFT)["items"]
    assert first["spec"]["nodeName"] == node
    kwok_cluster.unreachable(node, at_once=False)

    def deadline() -> str | None:
        found = world.find("pod", first["metadata"]["name"])
        return found["metadata"].get("deletionTimestamp") if found else "gone"

    until = eventually(deadline, "Kubernetes gives the pod up", LOST_SECONDS)
    seen = 0
    while True:
        pods = world.live_pods(SFT)  # first: the next attempt is in the status before it has a pod
        if world.stage("sft")["attempt"] > 1:
            break
        assert pods in ([], [first["metadata"]["name"]])
        seen += 1
        assert seen < 10 * LOST_SECONDS, "the stage waits for a node that does not come back"
        world.sleep(0.1)
    world.wait("Complete")

    stage = world.stage("sft")
    assert (stage["attempt"], stage.get("retries", 0), stage.get("infraRestarts")) == (2, 0, 1)
    second = world.kubectl.get("pods", "-l", SFT)["items"][-1]
    assert second["spec"]["nodeName"] != node
    assert max(Counter(world.created_jobs()).values()) == 1

    forced, started = ended_by_force(world, first["metadata"]["name"]), created(world, stage["jobName"])
    assert moment(forced) - datetime.fromisoformat(until) >= LOST_AFTER
    assert moment(forced) < moment(started), "two writers"
    print(f"given up at {until}, ended {moment(forced)}, next attempt {moment(started)}")


def ended_by_force(world: World, pod: str) -> Event:
    """The operator's deletion of a pod without grace; there must be one."""
    found = world.control_plane.audit.events(
        verb="delete", resource="pods", namespace=world.namespace, name=pod, user=world.operator.name, accepted=True
    )
    (event,) = (event for event in found if event.raw["requestObject"].get("gracePeriodSeconds") == 0)
    return event


def created(world: World, job: str) -> Event:
    found = world.control_plane.audit.events(verb="create", resource="jobs", namespace=world.namespace, accepted=True)
    (event,) = (event for event in found if event.name == job)
    return event


def moment(event: Event) -> datetime:
    """When the API server had carried it out."""
    return datetime.fromisoformat(event.raw["stageTimestamp"])
