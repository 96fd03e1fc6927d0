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
from tests.support.kwok_env import HOLD, KwokEnv

pytestmark = pytest.mark.cluster

CHECKPOINTS = {"term_delay_ms": 1000, "term_exit_code": 85}


@pytest.fixture
def queue(kueue: Kueue, env: KwokEnv) -> Iterator[Queue]:
    """One GPU for all cycles of the test's namespace."""
    with kueue.queue(env.namespace, slots=1) as local_queue:
        yield local_queue


def apply(env: KwokEnv, name: str, queue: str = Queue.name, patches: Sequence[Document] = (), **queueing: str) -> None:
    """A cycle whose sft needs the GPU and keeps it until it is told to finish."""
    env.apply(
        name,
        annotations_of={"sft": behaviour(run="forever", **CHECKPOINTS)},
        stages=[{"name": "sft", "resources": {"limits": {GPU: 1}}, "patches": list(patches)}],
        queueing={"queueName": queue, **queueing},
    )


def finish(env: KwokEnv, name: str = "loop") -> Document:
    """Lets sft end, and the cycle with it; sft's record."""
    env.running("sft", name=name)
    env.finish("sft", name)
    env.wait("Complete", name)
    return env.stage("sft", name=name)


def counts(stage: Document) -> tuple[int, int, int]:
    """Attempt, retries and restarts."""
    return stage["attempt"], stage.get("retries", 0), stage.get("infraRestarts", 0)


def created_once(env: KwokEnv) -> None:
    """Every Job that was ever created in the namespace was created once."""
    assert max(Counter(env.created_jobs()).values()) == 1


def time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def sft_pod(env: KwokEnv, *besides: str, name: str = "loop") -> dict[str, Any]:
    """The pod of sft, besides those with these names."""
    pods = env.kubectl.get("pods", "-l", f"medgr2.io/cycle={name},medgr2.io/stage=sft")["items"]
    (pod,) = (pod for pod in pods if pod["metadata"]["name"] not in besides)
    return dict(pod)


def test_who_does_not_ask_for_kueue_does_not_need_it(control_plane: ControlPlane, kueue: Kueue) -> None:
    for kind in ("mutatingwebhookconfigurations", "validatingwebhookconfigurations"):
        items = json.loads(control_plane.kubectl("get", kind, "-o", "json"))["items"]
        (webhooks,) = (item["webhooks"] for item in items if item["metadata"]["name"].startswith("kueue-"))
        assert {"mjob.kb.io", "vjob.kb.io"} & {webhook["name"] for webhook in webhooks}
        for webhook in webhooks:
            (rule,) = webhook["rules"]
            asks = webhook["namespaceSelector"] == {"matchLabels": {MANAGED: "true"}}
            assert asks or rule["apiGroups"] == ["kueue.x-k8s.io"], webhook["name"]


def test_a_stage_waits_for_quota_and_says_so(env: KwokEnv, queue: Queue) -> None:
    env.operator.start()
    apply(env, "first")
    env.running("sft", name="first")
    apply(env, "second")
    env.told("AwaitingQuota", f"sft@1.*insufficient unused quota for {re.escape(GPU)}", "second")
    assert env.stage("sft", name="second")["state"] == "Pending"
    assert env.live_pods("medgr2.io/cycle=second") == []
    assert counts(finish(env, "first")) == (1, 0, 0)
    assert counts(finish(env, "second")) == (1, 0, 0)
    created_once(env)


def test_quota_taken_back_costs_nothing_and_the_attempt_goes_on(env: KwokEnv, queue: Queue) -> None:
    env.operator.start()
    # the Job controller sees how the pod ended before it is gone (mostly it is too late for that), and the pod is still
    # there when the quota comes back: a kubelet takes its time to unmount a volume
    apply(env, "loop", patches=[HOLD])
    before = env.running("sft")
    first = sft_pod(env)
    queue.stop()
    eventually(lambda: sft_pod(env)["status"]["phase"] == "Failed", "the pod has checkpointed")
    eventually(lambda: not env.kubectl.get("job", before["jobName"])["status"].get("terminating"), "the Job knows")
    waits = env.reaches("Pending", "sft")
    assert counts(waits) == (1, 0, 0)
    ran = waits["runSeconds"]
    assert ran > 0
    # Kueue says "The ClusterQueue is stopped" of the eviction, and names the queue once it has tried to admit it again
    env.told("AwaitingQuota", rf"sft@1.*ClusterQueue ({re.escape(env.namespace)} )?is (stopped|inactive)")
    assert env.live_pods("medgr2.io/stage=sft") == []
    queue.go_on()
    again = env.running("sft")
    second = sft_pod(env, first["metadata"]["name"])
    env.release(first["metadata"]["name"])
    assert (again["jobName"], again["jobUID"]) == (before["jobName"], before["jobUID"])
    assert first["metadata"]["uid"] != second["metadata"]["uid"]
    job = env.kubectl.get("job", again["jobName"])
    assert time(job["status"]["startTime"]) > time(first["status"]["startTime"]), "Kueue starts the Job's clock anew"
    env.release(second["metadata"]["name"])
    done = finish(env)
    assert counts(done) == (1, 0, 0)
    began = time(second["status"]["containerStatuses"][0]["state"]["running"]["startedAt"])
    stretch = (time(done["completionTime"]) - began).total_seconds()
    # the operator's clock is the API server's to a part of a second only
    assert done["runSeconds"] == pytest.approx(ran + stretch, abs=0.1)
    assert ("Requeued", "sft@1: back in the queue") in env.events()
    created_once(env)


def test_what_is_in_flight_goes_first(env: KwokEnv, queue: Queue) -> None:
    """An attempt that goes on from a checkpoint takes the quota from a cycle that only starts; that one waits, and
    goes on later."""
    low, middle, high = (queue.priority(title, value) for title, value in (("low", 1), ("middle", 2), ("high", 3)))
    env.operator.start()
    apply(env, "old", workloadPriorityClassName=low, inFlightPriorityClassName=high)
    env.running("sft", name="old")
    env.patch({"spec": {"suspend": True}}, "old")
    env.wait("Suspended", "old")
    apply(env, "new", workloadPriorityClassName=middle)
    env.running("sft", name="new")
    env.patch({"spec": {"suspend": False}}, "old")
    waits = env.reaches("Pending", "sft", name="new")
    assert counts(waits) == (1, 0, 0)
    assert waits["runSeconds"] > 0
    assert counts(finish(env, "old")) == (2, 0, 0)
    job = env.kubectl.get("job", env.stage("sft", name="old")["jobName"])
    assert job["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == high
    assert counts(finish(env, "new")) == (1, 0, 0)
    created_once(env)


def test_a_cycle_can_be_suspended_while_it_waits(env: KwokEnv, queue: Queue) -> None:
    queue.stop()
    env.operator.start()
    apply(env, "loop")
    env.told("AwaitingQuota", "prepare@0")
    env.patch({"spec": {"suspend": True}})
    env.wait("Suspended")
    eventually(lambda: not env.kubectl.get("jobs")["items"], "its Job leaves the queue")
    queue.go_on()
    env.patch({"spec": {"suspend": False}})
    finish(env)
    assert counts(env.stage("prepare", 0)) == (2, 0, 0)
    created_once(env)


def test_a_queue_that_does_not_exist_is_told(env: KwokEnv, queue: Queue) -> None:
    env.operator.start()
    apply(env, "loop", queue="typo")
    env.told("AwaitingQuota", "LocalQueue typo doesn't exist")
    queue.add_local("typo")
    assert counts(finish(env)) == (1, 0, 0)
