"""What a person sees with kubectl alone: columns, waiting for an end, events, and why a stage does not start."""

from __future__ import annotations

import pytest

from tests.cluster.fixtures import Document, eventually
from tests.cluster.kwok import behaviour
from tests.support.kwok_env import KwokEnv


def test_columns_and_waiting_for_the_end(env: KwokEnv) -> None:
    env.operator.start()
    env.apply(iterations=1)
    assert env.kubectl("wait", "mgc/loop", "--for=condition=Complete", "--timeout=100s") == (
        "medgr2cycle.medgr2.io/loop condition met\n"
    )
    header, row = env.kubectl("get", "mgc").splitlines()
    assert header.split() == ["NAME", "PHASE", "ITERATION", "SUMMARY", "APPLIED", "AGE"]
    assert row.split()[:4] == ["loop", "Complete", "1", "1/1"]
    wide = env.kubectl("get", "mgc", "-o", "wide").splitlines()[0].split()
    best = ["BEST", "MACRO", "ACCURACY"]
    assert wide == ["NAME", "PHASE", "ITERATION", "SUMMARY", *best, "GPU-SECONDS", "REASON", "APPLIED", "AGE"]
    assert "medgr2cycle.medgr2.io/loop" in env.kubectl("get", "all", "-o", "name")


def test_waiting_for_a_failure(env: KwokEnv) -> None:
    env.operator.start()
    env.apply(annotations_of={"prepare": behaviour(exit_code=65)})
    env.kubectl("wait", "mgc/loop", "--for=condition=Failed", "--timeout=100s")
    assert env.kubectl("get", "mgc").splitlines()[1].split()[1] == "Failed"


def test_every_transition_has_its_event(env: KwokEnv) -> None:
    """In the order in which they came; what repeats is named once."""
    env.operator.start()
    env.apply(
        pauseBefore=["sft"],
        annotations_of={
            "reward": behaviour(attempt=1, exit_code=75),
            "generate": behaviour(attempt=1, run="forever", term_exit_code=85, checkpoint_step=3),
            "sft": behaviour(delay_ms=4000),
        },
        maxParallelStages=1,
    )
    eventually(lambda: env.stage("generate").get("state") == "Running", "it generates", 120)
    env.patch({"spec": {"suspend": True}})
    env.wait("Suspended")
    eventually(lambda: not env.live_pods(), "its pod is gone")
    env.patch({"spec": {"suspend": False}})
    eventually(lambda: env.cycle()["status"]["phase"] == "Paused", "it pauses", 120)
    env.patch({"spec": {"approved": [{"iteration": 1, "stage": "sft"}]}})
    env.wait("Complete")
    env.patch({"spec": {"restartFrom": {"iteration": 1, "stage": "report", "token": "again"}}})
    eventually(lambda: env.stage("report").get("token") == "again", "it runs again")
    env.wait("Complete")
    events = _events_of(env, "loop")
    of_cycle = {event["reason"] for event in events if "@" not in event["message"]}
    assert {"Running", "Suspended", "Paused", "Complete"} <= of_cycle, of_cycle
    messages = [event["message"] for event in events]
    for expected in (
        "reward@0: attempt 1 ended",
        "generate@1: stopping",
        "generate@1: attempt 1 ended",
        "sft@1: attempt 1 is running",  # what is over within a second may go unseen
        "from report@1, token again",
    ):
        assert any(expected in message for message in messages), (expected, messages)
    for stage in ("prepare@0", "reward@0", "generate@1", "sft@1", "report@1"):
        about = {event["reason"] for event in events if event["message"].startswith(f"{stage}:")}
        assert "Succeeded" in about, (stage, about)
    assert {event["type"] for event in events if event["reason"] == "Complete"} == {"Normal"}


def test_a_failure_has_a_warning(env: KwokEnv) -> None:
    env.operator.start()
    env.apply(annotations_of={"prepare": behaviour(exit_code=65)})
    env.wait("Failed")
    events = eventually(
        lambda: [event for event in _events_of(env, "loop") if event["reason"] == "Failed"], "the event"
    )
    assert {event["type"] for event in events} == {"Warning"}
    assert all("prepare@0" in event["message"] for event in events)


@pytest.mark.parametrize("bound_late", [False, True])
def test_a_volume_that_is_not_bound_is_told_within_a_minute(env: KwokEnv, bound_late: bool) -> None:
    env.operator.start()
    claim = {"accessModes": ["ReadWriteMany"], "storageClassName": "", "resources": {"requests": {"storage": "9Gi"}}}
    env.kubectl.apply(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "unbound"}, "spec": claim}
    )
    env.apply(workspace={"persistentVolumeClaim": {"claimName": "unbound"}})
    env.told("AwaitingVolume", "prepare@0.*PersistentVolumeClaim")
    if bound_late:
        name = f"{env.namespace}-late"
        volume = {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "",
            "capacity": {"storage": "9Gi"},
            "hostPath": {"path": "/nowhere"},
            "claimRef": {"name": "unbound", "namespace": env.namespace},
        }
        env.kubectl.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": volume})
        try:
            env.wait("Complete")
        finally:
            env.kubectl("delete", "pv", name, "--wait=false")


def _events_of(env: KwokEnv, name: str) -> list[Document]:
    """The operator's events about a cycle, oldest first."""
    events = env.kubectl.get("events", f"--field-selector=involvedObject.name={name}")["items"]
    ours = [event for event in events if event.get("reportingComponent") == "medgr2-operator"]
    return sorted(ours, key=lambda event: str(event["firstTimestamp"]))
