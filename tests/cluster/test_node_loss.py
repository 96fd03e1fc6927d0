"""A node that falls silent under a running stage: nobody can say what its pod does, and nobody else may write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from medgr2_operator.runtime.observe import LOST_AFTER
from tests.cluster.audit import Event
from tests.cluster.fixtures import eventually
from tests.cluster.kwok import Kwok, behaviour, tolerates
from tests.support.kwok_env import KwokEnv

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

#: Kubernetes gives a silent node up after 50 s and its pods 5 s later; after their grace we wait a minute more.
LOST_SECONDS = 300
GRACE_SECONDS = 10
SFT = "medgr2.io/stage=sft"


@pytest.fixture
def node(kwok_cluster: Kwok, env: KwokEnv) -> Iterator[str]:
    """The test's own node."""
    kwok_cluster.add_node(env.namespace)
    eventually(lambda: kwok_cluster.is_ready(env.namespace), "the node is ready")
    yield env.namespace
    kwok_cluster.remove_node(env.namespace)


def prefers(node: str) -> list[dict[str, Any]]:
    """Patches of a Job whose pods go to a node as long as it is there."""
    preference = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}
    affinity = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": preference}]}
    return [
        {"op": "add", "path": "/spec/template/spec/tolerations", "value": [tolerates(node)]},
        {"op": "add", "path": "/spec/template/spec/affinity", "value": {"nodeAffinity": affinity}},
    ]


def test_a_lost_nodes_pod_has_ended_before_another_starts(env: KwokEnv, kwok_cluster: Kwok, node: str) -> None:
    env.operator.start()
    env.apply(
        annotations_of={"sft": behaviour(attempt=1, run="forever")},
        stages=[{"name": "sft", "patches": prefers(node)}],
        template={"terminationGracePeriodSeconds": GRACE_SECONDS},
    )
    env.running("sft")
    (first,) = env.kubectl.get("pods", "-l", SFT)["items"]
    assert first["spec"]["nodeName"] == node
    kwok_cluster.unreachable(node, at_once=False)

    def deadline() -> str | None:
        pod = env.find("pod", first["metadata"]["name"])
        return pod["metadata"].get("deletionTimestamp") if pod else "gone"

    until = eventually(deadline, "Kubernetes gives the pod up", LOST_SECONDS)
    seen = 0
    while True:
        pods = env.live_pods(SFT)  # first: the next attempt is in the status before it has a pod
        if env.stage("sft")["attempt"] > 1:
            break
        assert pods in ([], [first["metadata"]["name"]])
        seen += 1
        assert seen < 10 * LOST_SECONDS, "the stage waits for a node that does not come back"
        env.sleep(0.1)
    env.wait("Complete")

    stage = env.stage("sft")
    assert (stage["attempt"], stage.get("retries", 0), stage.get("infraRestarts")) == (2, 0, 1)
    second = env.kubectl.get("pods", "-l", SFT)["items"][-1]
    assert second["spec"]["nodeName"] != node
    assert max(Counter(env.created_jobs()).values()) == 1

    forced, started = ended_by_force(env, first["metadata"]["name"]), created(env, stage["jobName"])
    assert moment(forced) - datetime.fromisoformat(until) >= timedelta(seconds=LOST_AFTER)
    assert moment(forced) < moment(started), "two writers"
    print(f"given up at {until}, ended {moment(forced)}, next attempt {moment(started)}")


def ended_by_force(env: KwokEnv, pod: str) -> Event:
    """The operator's deletion of a pod without grace; there must be one."""
    events = env.control_plane.audit.events(
        verb="delete", resource="pods", namespace=env.namespace, name=pod, user=env.operator.name, accepted=True
    )
    (event,) = (event for event in events if event.raw["requestObject"].get("gracePeriodSeconds") == 0)
    return event


def created(env: KwokEnv, job: str) -> Event:
    events = env.control_plane.audit.events(verb="create", resource="jobs", namespace=env.namespace, accepted=True)
    (event,) = (event for event in events if event.name == job)
    return event


def moment(event: Event) -> datetime:
    """When the API server had carried it out."""
    return datetime.fromisoformat(event.raw["stageTimestamp"])
