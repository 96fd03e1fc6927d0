"""Whole cycles through the operator, on simulated nodes: real API server, real Job controller, real scheduler."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.control_plane import ControlPlane
from tests.cluster.fixtures import Kubectl, eventually
from tests.cluster.kwok import Kwok, behaviour
from tests.cluster.world import World

RUNS = behaviour(run="forever", term_delay_ms=300, term_exit_code=85, checkpoint_step=3)


@pytest.fixture
def world(
    control_plane: ControlPlane, kwok_cluster: Kwok, crd: str, kubectl: Kubectl, namespace: str, tmp_path: Path
) -> Iterator[World]:
    world = World(control_plane, kubectl, namespace, tmp_path)
    world.make_claim()
    yield world
    world.close()


def test_a_cycle_runs_to_its_end_and_every_job_is_created_once(world: World) -> None:
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


@pytest.mark.parametrize(
    ("ends", "counts", "why"),
    [
        (behaviour(attempt=1, exit_code=1), (1, 0), "application"),
        (behaviour(attempt=1, exit_code=75), (1, 0), "application"),
        (behaviour(attempt=1, exit_code=137, reason="OOMKilled"), (1, 0), "OOMKilled"),
        (behaviour(attempt=1, exit_code=85, checkpoint_step=5), (0, 0), "progress"),
        (behaviour(attempt=1, exit_code=85), (0, 1), "no progress"),
        (behaviour(attempt=1, exit_code=143), (0, 1), "SIGTERM"),
        (behaviour(attempt=1, exit_code=137, pod_reason="Evicted"), (0, 1), "eviction"),
    ],
)
def test_a_failure_counts_where_it_belongs_and_the_stage_starts_again(
    world: World, ends: dict[str, str], counts: tuple[int, int], why: str
) -> None:
    world.operator.start()
    world.apply(annotations_of={"sft": ends}, failurePolicy={"backoffSeconds": 0})
    world.wait("Complete")
    stage = world.stage("sft")
    assert stage["attempt"] == 2
    assert (stage.get("retries", 0), stage.get("infraRestarts", 0)) == counts


@pytest.mark.parametrize("code", [2, 64, 65, 78])
def test_what_cannot_be_mended_fails_the_cycle_at_once(world: World, code: int) -> None:
    world.operator.start()
    result = {"exit_code": code, "message": "items.jsonl, row 3: no answer", "reason": "DataError"}
    world.apply(annotations_of={"prepare": behaviour(exit_code=code, result=result)})
    failed = world.wait("Failed")
    assert "prepare@0" in failed["message"]
    assert "row 3: no answer" in failed["message"]
    assert len(world.created_jobs()) == 1


def test_a_sidecar_that_does_not_stay_up_is_the_programs_fault(world: World) -> None:
    world.operator.start()
    sidecar = {"name": "server", "image": "x", "restartPolicy": "Always"}
    world.apply(
        annotations_of={"sft": behaviour(attempt=1, sidecar_restarts=3, run="forever", term_exit_code=143)},
        template={"patches": [{"op": "add", "path": "/spec/template/spec/initContainers", "value": [sidecar]}]},
    )
    world.wait("Complete")
    assert (world.stage("sft")["attempt"], world.stage("sft").get("retries")) == (2, 1)


def test_tries_are_used_up(world: World) -> None:
    world.operator.start()
    world.apply(
        annotations_of={"prepare": behaviour(exit_code=1)}, failurePolicy={"maxRetries": 2, "backoffSeconds": 0}
    )
    world.wait("Failed")
    assert world.stage("prepare", 0)["attempt"] == 3


def test_suspend_checkpoints_and_resume_goes_on(world: World) -> None:
    world.operator.start()
    world.apply(annotations_of={"grpo": behaviour(attempt=1, **_options(RUNS))})
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


def test_a_deleted_job_has_no_second_writer(world: World) -> None:
    """The pod of a Job that somebody deleted still checkpoints: the next attempt waits for its end."""
    world.operator.start()
    world.apply(annotations_of={"sft": behaviour(attempt=1, run="forever", term_delay_ms=4000, term_exit_code=85)})
    name = world.running("sft")["jobName"]
    world.kubectl("delete", "job", name, "--wait=false")
    eventually(lambda: world.stage("sft").get("state") == "Terminating", "its loss is seen")
    while world.live_pods():
        assert world.stage("sft")["attempt"] == 1
    world.wait("Complete")
    assert world.stage("sft")["attempt"] == 2


def test_a_deleted_pod_is_infrastructure(world: World) -> None:
    world.operator.start()
    world.apply(annotations_of={"sft": behaviour(attempt=1, run="forever", term_exit_code=143)})
    world.running("sft")
    world.kubectl("delete", "pod", *world.live_pods(), "--wait=false")
    world.wait("Complete")
    assert (world.stage("sft")["attempt"], world.stage("sft").get("infraRestarts")) == (2, 1)


def test_an_image_that_cannot_be_pulled_is_told(world: World) -> None:
    world.operator.start()
    world.apply(annotations_of={"prepare": behaviour(waiting="ImagePullBackOff")})
    eventually(lambda: world.condition("Progressing").get("reason") == "ImagePull", "the cause", 60)
    assert "prepare@0" in world.condition("Progressing")["message"]


def test_a_stage_that_fits_nowhere_is_told(world: World) -> None:
    world.operator.start()
    world.apply(stages=[{"name": "sft", "resources": {"limits": {"nvidia.com/gpu": 5000}}}])
    eventually(lambda: world.condition("Progressing").get("reason") == "Unschedulable", "the cause", 90)
    assert "nvidia.com/gpu" in world.condition("Progressing")["message"]


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


def test_a_success_whose_pod_was_gone_is_read_from_its_manifest(world: World) -> None:
    """The collecting attempt is a CPU pod, never a second run."""
    world.operator.start()
    world.apply(annotations_of={"sft": behaviour(attempt=1, message="gone")})
    world.wait("Complete")
    stage = world.stage("sft")
    assert (stage["attempt"], stage.get("retries", 0), stage["collect"]) == (2, 0, True)


def test_a_cycle_that_cannot_be_rendered_is_told(world: World) -> None:
    world.operator.start()
    world.apply(template={"patches": [{"op": "remove", "path": "/spec/nothing"}]})
    found = eventually(
        lambda: c if (c := world.condition("Progressing")).get("reason") == "InvalidSpec" else None, "it is told"
    )
    assert "spec.template.patches[1]" in found["message"]
    assert world.created_jobs() == []


def test_deleting_the_cycle_takes_its_jobs_and_pods(world: World) -> None:
    world.operator.start()
    world.apply(annotations_of={"prepare": RUNS})
    world.running("prepare", 0)
    world.kubectl("delete", "medgr2cycle", "loop", "--wait=false")
    eventually(lambda: not world.kubectl.get("jobs")["items"], "the Jobs are gone")
    eventually(lambda: not world.kubectl.get("pods")["items"], "the pods are gone")
    assert world.find("pvc", "medgr2-data"), "the user's claim stays"


def test_a_finished_cycle_goes_after_its_time(world: World) -> None:
    world.operator.start()
    world.apply(ttlSecondsAfterFinished=1)
    eventually(lambda: world.find("medgr2cycle", "loop") is None, "it is gone", 120)


def test_killed_again_and_again_it_creates_every_job_once(world: World) -> None:
    world.operator.start(leader_election="false")
    world.apply(iterations=3, annotations=behaviour(delay_ms=100))
    kills = 0
    while world.condition("Complete").get("status") != "True" and kills < 200:
        wait = 0.4 + 1.6 * int.from_bytes(os.urandom(1)) / 255
        eventually(lambda: world.operator.get("/healthz")[0] == 200, "it is up again")
        world.sleep(wait)
        world.operator.kill()
        kills += 1
        world.operator.start(leader_election="false")
    world.wait("Complete")
    created = world.created_jobs()
    assert max(Counter(created).values()) == 1
    assert {stage["attempt"] for stage in world.cycle()["status"]["stages"] if "attempt" in stage} <= {1}
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
    assert world.operator.stop() == 0
    lease = world.kubectl.get("lease", "medgr2-operator")
    assert not lease["spec"].get("holderIdentity")


def _options(annotations: dict[str, str]) -> dict[str, Any]:
    return {key.split("/")[1].replace("-", "_"): value for key, value in annotations.items()}
