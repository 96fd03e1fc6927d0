"""What the operator leaves out: writes and looks that change nothing; and that nothing is missed for it."""

from __future__ import annotations

from collections import Counter

from tests.cluster.fixtures import eventually
from tests.cluster.kwok import behaviour
from tests.support.kwok_env import KwokEnv


def test_an_attempt_takes_five_writes(env: KwokEnv) -> None:
    """Intent or outcome, creation, start, and an event for start and end each."""
    env.operator.start()
    eventually(lambda: env.operator.get("/readyz")[0] == 200, "it is up, with no cycle to be seen")
    env.apply(annotations=behaviour(delay_ms=2500))  # long enough that the start is seen
    env.wait("Complete")
    verbs = {"create", "update", "patch", "delete"}
    writes = Counter(
        (event.verb, f"{event.resource}/{event.subresource}".rstrip("/"))
        for event in env.control_plane.audit.events(user=env.operator.name, namespace=env.namespace)
        if event.verb in verbs and event.resource != "leases"
    )
    attempts = len(env.created_jobs())
    assert {("update", "medgr2cycles/status"), ("create", "jobs"), ("create", "events")} == set(writes)
    # besides: the cycle's own first and last event, and the end of a stage after which nothing starts
    assert writes.total() <= 5 * attempts + 5, writes


def test_a_job_that_vanished_before_it_ran_is_not_made_again_under_its_name(env: KwokEnv) -> None:
    """A queue holds it back, so it has no pod; its uid is not in the status yet, but the operator knows it."""
    env.operator.start()
    eventually(
        lambda: 'leader_election_master_status{name="medgr2-operator"} 1.0' in env.operator.get("/metrics")[1],
        "it leads",
    )
    env.sleep(2)  # or the cycle is listed twice at the start, and looked at twice
    env.apply(queueing={"queueName": "closed"})
    (name,) = eventually(env.created_jobs, "the first Job")
    env.kubectl("delete", "job", name)
    eventually(lambda: len(env.created_jobs()) == 2, "another one")
    assert max(Counter(env.created_jobs()).values()) == 1
    assert (env.stage("prepare", 0)["attempt"], env.stage("prepare", 0)["infraRestarts"]) == (2, 1)


def test_a_claim_that_comes_later_is_found(env: KwokEnv) -> None:
    env.operator.start()
    env.apply(workspace={"persistentVolumeClaim": {"claimName": "later"}})
    eventually(lambda: env.condition("WorkspaceReady").get("status") == "False", "it is missed")
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": ""}
    env.kubectl.apply(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "later"}, "spec": spec}
    )
    env.wait("WorkspaceReady")
