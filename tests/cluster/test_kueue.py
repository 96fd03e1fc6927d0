"""Cycles in a queue: real Kueue gives one GPU to one of them at a time, and takes it back."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import pytest

from tests.cluster.control_plane import ControlPlane
from tests.cluster.fixtures import Document, eventually
from tests.cluster.kueue import GPU, MANAGED, Kueue, Queue
from tests.cluster.kwok import behaviour
from tests.support.kwok_env import HOLD, World

pytestmark = pytest.mark.cluster

#: Until the condition names the cause of a stage that waits, in seconds.
TOLD_SECONDS = 60
CHECKPOINTS = {"term_delay_ms": 1000, "term_exit_code": 85}


@pytest.fixture
def queue(kueue: Kueue, world: World) -> Iterator[Queue]:
    """One GPU for all cycles of the test's namespace."""
    with kueue.queue(world.namespace, slots=1) as made:
        yield made


def apply(world: World, name: str, queue: str = Queue.name, patches: Sequence[Document] = (), **queueing: str) -> None:
    """A cycle whose sft needs the GPU and keeps it until it is told to finish."""
    world.apply(
        name,
        annotations_of={"sft": behaviour(run="forever", **CHECKPOINTS)},
        stages=[{"name": "sft", "resources": {"limits": {GPU: 1}}, "patches": list(patches)}],
        queueing={"queueName": queue, **queueing},
    )


def told(world: World, reason: str, name: str = "loop") -> str:
    """The message of Progressing, once that is the reason."""

    def message() -> str | None:
        found = world.condition("Progressing", name)
        return str(found["message"]) if found.get("reason") == reason else None

    return eventually(message, f"{name} tells {reason}", TOLD_SECONDS)


def finish(world: World, name: str = "loop") -> Document:
    """Lets sft end, and the cycle with it; sft's record."""
    world.running("sft", name=name)
    world.finish("sft", name)
    world.wait("Complete", name)
    return world.stage("sft", name=name)


def counts(stage: Document) -> tuple[int, int, int]:
    """Attempt, retries and restarts."""
    return stage["attempt"], stage.get("retries", 0), stage.get("infraRestarts", 0)


def created_once(world: World) -> None:
    """Every Job that was ever created in the namespace was created once."""
    assert max(Counter(world.created_jobs()).values()) == 1


def time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def sft_pod(world: World, name: str = "loop") -> dict[str, Any]:
    """The pod of sft that runs."""
    (found,) = world.kubectl.get("pods", "-l", f"medgr2.io/cycle={name},medgr2.io/stage=sft")["items"]
    return dict(found)


def test_who_does_not_ask_for_kueue_does_not_need_it(control_plane: ControlPlane, kueue: Kueue) -> None:
    for kind in ("mutatingwebhookconfigurations", "validatingwebhookconfigurations"):
        found = json.loads(control_plane.kubectl("get", kind, "-o", "json"))["items"]
        (webhooks,) = (item["webhooks"] for item in found if item["metadata"]["name"].startswith("kueue-"))
        assert {"mjob.kb.io", "vjob.kb.io"} & {webhook["name"] for webhook in webhooks}
        for webhook in webhooks:
            (rule,) = webhook["rules"]
            asks = webhook["namespaceSelector"] == {"matchLabels": {MANAGED: "true"}}
            assert asks or rule["apiGroups"] == ["kueue.x-k8s.io"], webhook["name"]


def test_a_stage_waits_for_quota_and_says_so(world: World, queue: Queue) -> None:
    world.operator.start()
    apply(world, "first")
    world.running("sft", name="first")
    apply(world, "second")
    message = told(world, "QuotaExhausted", "second")
    assert "sft@1" in message
    assert f"insufficient unused quota for {GPU}" in message
    assert world.stage("sft", name="second")["state"] == "Pending"
    assert world.live_pods("medgr2.io/cycle=second") == []
    assert counts(finish(world, "first")) == (1, 0, 0)
    assert counts(finish(world, "second")) == (1, 0, 0)
    created_once(world)


def test_quota_taken_back_costs_nothing_and_the_attempt_goes_on(world: World, queue: Queue) -> None:
    world.operator.start()
    # the Job controller sees how the pod ended before it is gone; mostly it is too late for that
    apply(world, "loop", patches=[HOLD])
    before = world.running("sft")
    first = sft_pod(world)
    queue.stop()
    eventually(lambda: sft_pod(world)["status"]["phase"] == "Failed", "the pod has checkpointed")
    eventually(lambda: not world.kubectl.get("job", before["jobName"])["status"].get("terminating"), "the Job knows")
    waits = world.reaches("Pending", "sft")
    world.release(first["metadata"]["name"])
    assert counts(waits) == (1, 0, 0)
    ran = waits["runSeconds"]
    assert ran > 0
    # Kueue says "The ClusterQueue is stopped" of the eviction, and names the queue once it has tried to admit it again
    message = told(world, "QuotaExhausted")
    assert re.search(rf"ClusterQueue ({re.escape(world.namespace)} )?is (stopped|inactive)", message), message
    assert world.live_pods("medgr2.io/stage=sft") == []
    queue.go_on()
    again = world.running("sft")
    second = sft_pod(world)
    assert (again["jobName"], again["jobUID"]) == (before["jobName"], before["jobUID"])
    assert first["metadata"]["uid"] != second["metadata"]["uid"]
    job = world.kubectl.get("job", again["jobName"])
    assert time(job["status"]["startTime"]) > time(first["status"]["startTime"]), "Kueue starts the Job's clock anew"
    world.release(second["metadata"]["name"])
    done = finish(world)
    assert counts(done) == (1, 0, 0)
    began = time(second["status"]["containerStatuses"][0]["state"]["running"]["startedAt"])
    stretch = (time(done["completionTime"]) - began).total_seconds()
    assert done["runSeconds"] == pytest.approx(ran + stretch, abs=0.01)
    assert ("Requeued", "sft@1: back in the queue") in world.events()
    created_once(world)


def test_what_is_in_flight_goes_first(world: World, queue: Queue) -> None:
    """An attempt that goes on from a checkpoint takes the quota from a cycle that only starts; that one waits, and
    goes on later."""
    low, middle, high = (queue.priority(title, value) for title, value in (("low", 1), ("middle", 2), ("high", 3)))
    world.operator.start()
    apply(world, "old", workloadPriorityClassName=low, inFlightPriorityClassName=high)
    world.running("sft", name="old")
    world.patch({"spec": {"suspend": True}}, "old")
    world.wait("Suspended", "old")
    apply(world, "new", workloadPriorityClassName=middle)
    world.running("sft", name="new")
    world.patch({"spec": {"suspend": False}}, "old")
    waits = world.reaches("Pending", "sft", name="new")
    assert counts(waits) == (1, 0, 0)
    assert waits["runSeconds"] > 0
    assert counts(finish(world, "old")) == (2, 0, 0)
    job = world.kubectl.get("job", world.stage("sft", name="old")["jobName"])
    assert job["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == high
    assert counts(finish(world, "new")) == (1, 0, 0)
    created_once(world)


def test_a_cycle_can_be_suspended_while_it_waits(world: World, queue: Queue) -> None:
    queue.stop()
    world.operator.start()
    apply(world, "loop")
    assert "prepare@0" in told(world, "QuotaExhausted")
    world.patch({"spec": {"suspend": True}})
    world.wait("Suspended")
    eventually(lambda: not world.kubectl.get("jobs")["items"], "its Job leaves the queue")
    queue.go_on()
    world.patch({"spec": {"suspend": False}})
    finish(world)
    assert counts(world.stage("prepare", 0)) == (2, 0, 0)
    created_once(world)


def test_a_queue_that_does_not_exist_is_told(world: World, queue: Queue) -> None:
    world.operator.start()
    apply(world, "loop", queue="typo")
    assert "LocalQueue typo doesn't exist" in told(world, "QuotaExhausted")
    queue.add_local("typo")
    assert counts(finish(world)) == (1, 0, 0)
