"""Whole cycles through the operator, on simulated nodes: real API server, real Job controller, real scheduler."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.cluster.fixtures import eventually
from tests.cluster.kwok import behaviour
from tests.cluster.operator import Operator
from tests.support.kwok_env import World


def test_a_cycle_runs_to_its_end_and_every_job_is_created_once(world: World) -> None:
    world.operator = world.replica("program", Operator)  # as its container starts it; elsewhere it is forked
    world.operator.start()
    world.apply(iterations=2)
    world.wait("Complete")
    stages = world.cycle()["status"]["stages"]
    assert {stage["state"] for stage in stages} == {"Succeeded"}
    created = world.created_jobs()
    assert Counter(created).most_common(1)[0][1] == 1
    assert len(created) == len(stages)
    assert world.kubectl("get", "medgr2cycle", "loop", "-o", "jsonpath={.status.phase}") == "Complete"
    assert ("Succeeded", "prepare@0") in {(reason, text.split(":")[0]) for reason, text in world.events()}
    assert "medgr2_stage_attempts_total" in world.operator.get("/metrics")[1]


def test_suspend_checkpoints_and_resume_goes_on(world: World) -> None:
    world.operator.start()
    world.apply(annotations_of={"grpo": behaviour(attempt=1, run="forever", term_delay_ms=300, term_exit_code=85)})
    world.running("grpo")
    world.patch({"spec": {"suspend": True}})
    world.wait("Suspended")
    eventually(lambda: not world.live_pods(), "no pod is left")
    world.patch({"spec": {"suspend": False}})
    world.wait("Complete")
    grpo = world.stage("grpo")
    assert (grpo["attempt"], grpo.get("retries", 0), grpo.get("infraRestarts", 0)) == (2, 0, 0)


def test_restart_from_reruns_that_stage_and_what_depends_on_it(world: World) -> None:
    world.operator.start()
    world.apply()
    world.wait("Complete")
    before = set(world.created_jobs())
    world.patch({"spec": {"restartFrom": {"iteration": 1, "stage": "grpo", "token": "again"}}})
    eventually(lambda: world.condition("Complete").get("status") == "False", "it is reopened")
    world.wait("Complete")
    again = {name.split("-i001-")[1].split("-a")[0] for name in set(world.created_jobs()) - before}
    assert again == {"grpo", "preferences", "reward", "evaluate", "report"}


def test_pause_before_waits_for_approval(world: World) -> None:
    world.operator.start()
    world.apply(pauseBefore=["sft"])
    eventually(lambda: world.cycle().get("status", {}).get("phase") == "Paused", "it pauses")
    assert world.condition("Progressing")["reason"] == "Paused"
    assert not world.stage("sft")
    world.patch({"spec": {"approved": [{"iteration": 1, "stage": "sft"}]}})
    world.wait("Complete")


def test_a_missing_claim_is_told(world: World) -> None:
    world.operator.start()
    world.apply(workspace={"persistentVolumeClaim": {"claimName": "nothing"}})
    ready = eventually(lambda: world.condition("WorkspaceReady"), "the condition")
    assert ready["status"] == "False"
    assert "PersistentVolumeClaim nothing does not exist" in ready["message"]
    assert world.created_jobs() == []


def test_a_claim_is_made_from_its_template(world: World) -> None:
    world.operator.start()
    template = {"spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}}
    world.apply(workspace={"volumeClaimTemplate": template})
    claim = eventually(lambda: world.find("pvc", "loop-workspace"), "the claim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert not claim["metadata"].get("ownerReferences"), "the default is to keep it"


def test_a_strangers_job_survives(world: World) -> None:
    world.apply()
    name = world.first_job_name()
    world.stranger(name)
    world.operator.start()
    conflict = world.wait("NameConflict")
    assert name in conflict["message"]
    assert world.kubectl.get("job", name)["metadata"]["labels"] == {"whose": "not-yours"}
    world.kubectl("delete", "job", name)
    world.wait("Complete")


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"template": {"patches": [{"op": "remove", "path": "/spec/nothing"}]}}, "spec.template.patches[1]"),
        ({"policy": {"baseModel": "builtin://no-such-model"}}, "spec.policy.baseModel"),
    ],
    ids=["cannot be rendered", "not supported"],
)
def test_a_cycle_that_cannot_be_run_is_told(world: World, changes: dict[str, Any], path: str) -> None:
    world.operator.start()
    world.apply(**changes)
    found = eventually(
        lambda: c if (c := world.condition("Progressing")).get("reason") == "InvalidSpec" else None, "it is told"
    )
    assert path in found["message"]
    assert world.created_jobs() == []


def test_deleting_the_cycle_takes_its_jobs_and_pods(world: World) -> None:
    world.operator.start()
    world.apply(annotations_of={"prepare": behaviour(run="forever", term_exit_code=85)})
    world.running("prepare", 0)
    world.kubectl("delete", "medgr2cycle", "loop", "--wait=false")
    eventually(lambda: not world.kubectl.get("jobs")["items"], "the Jobs are gone")
    eventually(lambda: not world.kubectl.get("pods")["items"], "the pods are gone")
    assert world.find("pvc", "medgr2-data"), "the user's claim stays"


def test_a_finished_cycle_goes_after_its_time(world: World) -> None:
    world.operator.start()
    world.apply(ttlSecondsAfterFinished=1)
    eventually(lambda: world.find("medgr2cycle", "loop") is None, "it is gone", 120)
