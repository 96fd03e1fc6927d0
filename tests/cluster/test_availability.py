"""The operator killed, replaced and stopped: no Job is created twice, none is forgotten."""

from __future__ import annotations

import os
from collections import Counter

from tests.cluster.fixtures import eventually
from tests.cluster.kwok import behaviour
from tests.cluster.world import World


def test_killed_again_and_again_it_creates_every_job_once(world: World) -> None:
    world.operator.start(leader_election="false")
    world.apply(iterations=3, annotations=behaviour(delay_ms=100))
    kills = 0
    while world.condition("Complete").get("status") != "True" and kills < 200:
        wait = 0.1 + 0.6 * int.from_bytes(os.urandom(1)) / 255
        eventually(lambda: world.operator.get("/healthz")[0] == 200, "it is up again")
        world.sleep(wait)
        world.operator.kill()
        kills += 1
        world.operator.start(leader_election="false")
    world.wait("Complete")
    created = world.created_jobs()
    assert max(Counter(created).values()) == 1
    assert {stage["attempt"] for stage in world.cycle()["status"]["stages"] if "attempt" in stage} <= {1}
    assert kills >= 10, "it was hardly disturbed"
    print(f"{kills} kills, {len(created)} Jobs")


def test_a_standby_takes_over(world: World) -> None:
    standby = world.replica("operator-1")
    world.operator.start()
    eventually(lambda: "medgr2_operator_leader 1.0" in world.operator.get("/metrics")[1], "the first leads")
    standby.start()
    eventually(lambda: standby.get("/readyz")[0] == 200, "the standby is ready, too")
    assert "medgr2_operator_leader 0.0" in standby.get("/metrics")[1]
    world.operator.kill()
    eventually(lambda: "medgr2_operator_leader 1.0" in standby.get("/metrics")[1], "the standby leads", 40)
    world.apply()
    world.wait("Complete")


def test_stopped_in_good_order_it_gives_the_lease_up(world: World) -> None:
    world.operator.start()
    eventually(lambda: "medgr2_operator_leader 1.0" in world.operator.get("/metrics")[1], "it leads")
    assert world.operator.stop() == 0, world.operator.log.read_text()[-3000:]
    lease = world.kubectl.get("lease", "medgr2-operator")
    assert not lease["spec"].get("holderIdentity")
