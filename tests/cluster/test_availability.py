"""The operator killed, replaced and stopped: no Job is created twice, none is forgotten."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from tests.cluster.fixtures import eventually
from tests.cluster.kwok import behaviour
from tests.support.kwok_env import KwokEnv

pytestmark = pytest.mark.cluster

LEADS = 'leader_election_master_status{name="medgr2-operator"} 1.0'
STANDS_BY = LEADS.replace("1.0", "0.0")

KILLS = 50
#: Cycles that are under way at any time.
CYCLES = 3
#: Longest life of an operator that is up, in seconds; a look at a cycle takes a tenth of it.
LIFE = 0.4
#: From a leader's death to another one's first deed.
TAKEOVER = timedelta(seconds=20)


@pytest.mark.slow
def test_killed_again_and_again_it_creates_every_job_once(env: KwokEnv) -> None:
    names: list[str] = []
    operator = env.replica("operator-1")

    def complete(name: str) -> bool:
        return env.condition("Complete", name).get("status") == "True"

    def creations() -> int:
        return operator.log.read_text().count("created Job") if operator.log.exists() else 0

    def creates_more_than(before: int) -> Callable[[], bool]:
        # the last Jobs of all cycles may run already: then there is nothing more to create
        return lambda: creations() > before or all(map(complete, names))

    for number in range(KILLS):
        under_way = [name for name in names if not complete(name)]
        for _ in range(len(under_way), CYCLES):
            names.append(f"loop-{len(names)}")
            env.apply(names[-1], iterations=2, annotations=behaviour(delay_ms=300))
        creates = creates_more_than(creations())
        operator.start(leader_election="false")
        if number % 4 == 0:  # while it starts, or takes its first look
            eventually(lambda: operator.get("/healthz")[0] == 200, "it is up again")
        else:  # while it works: one cycle has its next Job, the others may be anywhere
            eventually(creates, "it works again")
        env.sleep(random.uniform(0, LIFE))
        operator.kill()
    operator.start(leader_election="false")
    for name in names:
        env.wait("Complete", name)

    created, stages = env.created_jobs(), [s for name in names for s in env.cycle(name)["status"]["stages"]]
    print(f"{KILLS} kills, {len(names)} cycles, {len(created)} Jobs")
    assert max(Counter(created).values()) == 1
    assert {stage["attempt"] for stage in stages if "attempt" in stage} == {1}  # older iterations keep less
    # a creation whose operator was killed before the answer may have been carried out, and is logged as failed
    standing = {job["metadata"]["name"] for job in env.kubectl.get("jobs")["items"]}
    assert set(created) <= standing
    assert len(standing) == len(stages)


def test_a_standby_takes_over(env: KwokEnv) -> None:
    standby = env.replica("operator-1")
    env.operator.start()
    eventually(lambda: LEADS in env.operator.get("/metrics")[1], "the first leads")
    standby.start()
    eventually(lambda: standby.get("/readyz")[0] == 200, "the standby is ready, too")
    assert STANDS_BY in standby.get("/metrics")[1]
    env.apply(annotations_of={"prepare": behaviour(run="forever")})
    env.running("prepare", 0)
    died = datetime.now(UTC)
    env.operator.kill()
    env.finish("prepare")  # what the dead leader should have seen
    eventually(lambda: LEADS in standby.get("/metrics")[1], "the standby leads", 60)
    env.wait("Complete")
    lease = env.kubectl.get("lease", "medgr2-operator")["spec"]
    first = next(
        event
        for event in env.control_plane.audit.events(verb="create", resource="jobs", namespace=env.namespace)
        if event.user == standby.name
    )
    led, acted = (datetime.fromisoformat(at) - died for at in (lease["acquireTime"], first.raw["stageTimestamp"]))
    print(f"leads after {led.total_seconds():.1f} s, creates the next Job after {acted.total_seconds():.1f} s")
    assert acted < TAKEOVER
    assert max(Counter(env.created_jobs()).values()) == 1


def test_stopped_in_good_order_it_gives_the_lease_up(env: KwokEnv) -> None:
    env.operator.start()
    eventually(lambda: LEADS in env.operator.get("/metrics")[1], "it leads")
    assert env.operator.stop() == 0, env.operator.log.read_text()[-3000:]
    lease = env.kubectl.get("lease", "medgr2-operator")
    assert not lease["spec"].get("holderIdentity")


def test_nobody_waits_for_an_operator_that_ended_by_itself(env: KwokEnv) -> None:
    """Of the tests: a minute each in vain, at least, would cost more than the failure."""
    env.apply()
    env.operator.start()
    os.kill(env.operator.pid, signal.SIGKILL)
    with pytest.raises(pytest.fail.Exception, match="ended by itself"):
        env.wait("Complete")
