"""What the operator leaves out: writes and looks that change nothing; and that nothing is missed for it."""

from __future__ import annotations

from collections import Counter

from tests.cluster.fixtures import eventually
from tests.cluster.kwok import behaviour
from tests.support.kwok_env import World


def test_an_attempt_takes_five_writes(world: World) -> None:
    """Intent or outcome, creation, start, and an event for start and end each."""
    world.operator.start()
    eventually(lambda: world.operator.get("/readyz")[0] == 200, "it is up, with no cycle to be seen")
    world.apply(annotations=behaviour(delay_ms=2500))  # long enough that the start is seen
    world.wait("Complete")
    verbs = {"create", "update", "patch", "delete"}
    writes = Counter(
        (event.verb, f"{event.resource}/{event.subresource}".rstrip("/"))
        for event in world.control_plane.audit.events(user=world.operator.name, namespace=world.namespace)
        if event.verb in verbs and event.resource != "leases"
    )
    attempts = len(world.created_jobs())
    assert {("update", "medgr2cycles/status"), ("create", "jobs"), ("create", "events")} == set(writes)
    # besides: the cycle's own first and last event, and the end of a stage after which nothing starts
    assert writes.total() <= 5 * attempts + 5, writes


def test_a_job_that_vanished_before_it_ran_is_not_made_again_under_its_name(world: World) -> None:
    """A queue holds it back, so it has no pod; its uid is not in the status yet, but the operator knows it."""
    world.operator.start()
    eventually(
        lambda: 'leader_election_master_status{name="medgr2-operator"} 1.0' in world.operator.get("/metrics")[1],
        "it leads",
    )
    world.sleep(2)  # or the cycle is listed twice at the start, and looked at twice
    world.apply(queueing={"queueName": "closed"})
    (name,) = eventually(world.created_jobs, "the first Job")
    world.kubectl("delete", "job", name)
    eventually(lambda: len(world.created_jobs()) == 2, "another one")
    assert max(Counter(world.created_jobs()).values()) == 1
    assert (world.stage("prepare", 0)["attempt"], world.stage("prepare", 0)["infraRestarts"]) == (2, 1)


def test_a_claim_that_comes_later_is_found(world: World) -> None:
    world.operator.start()
    world.apply(workspace={"persistentVolumeClaim": {"claimName": "later"}})
    eventually(lambda: world.condition("WorkspaceReady").get("status") == "False", "it is missed")
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": ""}
    world.kubectl.apply(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "later"}, "spec": spec}
    )
    world.wait("WorkspaceReady")
