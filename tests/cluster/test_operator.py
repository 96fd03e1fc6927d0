"""Whole cycles through the operator, on simulated nodes: real API server, real Job controller, real scheduler."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.fixtures import eventually
from tests.cluster.kwok import behaviour
from tests.cluster.operator import Operator
from tests.support.kwok_env import QUICKSTART, KwokEnv


def test_a_cycle_runs_to_its_end_and_every_job_is_created_once(env: KwokEnv) -> None:
    env.operator = env.replica("program", Operator)  # as its container starts it; elsewhere it is forked
    env.operator.start()
    env.apply(iterations=2)
    env.wait("Complete")
    stages = env.cycle()["status"]["stages"]
    assert {stage["state"] for stage in stages} == {"Succeeded"}
    created = env.created_jobs()
    assert Counter(created).most_common(1)[0][1] == 1
    assert len(created) == len(stages)
    assert env.kubectl("get", "medgr2cycle", "loop", "-o", "jsonpath={.status.phase}") == "Complete"
    assert ("Succeeded", "prepare@0") in {(reason, text.split(":")[0]) for reason, text in env.events()}
    assert "medgr2_stage_attempts_total" in env.operator.get("/metrics")[1]


def test_suspend_checkpoints_and_resume_goes_on(env: KwokEnv) -> None:
    env.operator.start()
    env.apply(annotations_of={"grpo": behaviour(attempt=1, run="forever", term_delay_ms=300, term_exit_code=85)})
    env.running("grpo")
    env.patch({"spec": {"suspend": True}})
    env.wait("Suspended")
    eventually(lambda: not env.live_pods(), "no pod is left")
    env.patch({"spec": {"suspend": False}})
    env.wait("Complete")
    grpo = env.stage("grpo")
    assert (grpo["attempt"], grpo.get("retries", 0), grpo.get("infraRestarts", 0)) == (2, 0, 0)


def test_restart_from_reruns_that_stage_and_what_depends_on_it(env: KwokEnv) -> None:
    env.operator.start()
    env.apply()
    env.wait("Complete")
    before = set(env.created_jobs())
    env.patch({"spec": {"restartFrom": {"iteration": 1, "stage": "grpo", "token": "again"}}})
    eventually(lambda: env.condition("Complete").get("status") == "False", "it is reopened")
    env.wait("Complete")
    again = {name.split("-i001-")[1].split("-a")[0] for name in set(env.created_jobs()) - before}
    assert again == {"grpo", "evaluategrpo", "measure", "report"}


def test_pause_before_waits_for_approval(env: KwokEnv) -> None:
    env.operator.start()
    env.apply(pauseBefore=["sft"])
    eventually(lambda: env.cycle().get("status", {}).get("phase") == "Paused", "it pauses")
    assert env.condition("Progressing")["reason"] == "AwaitingApproval"
    assert (env.stage("sft")["state"], env.stage("sft").get("attempt")) == ("AwaitingApproval", None)
    env.patch({"spec": {"approved": [{"iteration": 1, "stage": "sft"}]}})
    env.wait("Complete")


def test_a_missing_claim_is_told(env: KwokEnv) -> None:
    env.operator.start()
    env.apply(workspace={"persistentVolumeClaim": {"claimName": "nothing"}})
    ready = eventually(lambda: env.condition("WorkspaceReady"), "the condition")
    assert ready["status"] == "False"
    assert "PersistentVolumeClaim nothing does not exist" in ready["message"]
    assert env.created_jobs() == []


def test_a_claim_is_made_from_its_template(env: KwokEnv) -> None:
    env.operator.start()
    template = {"spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}}
    env.apply(workspace={"volumeClaimTemplate": template})
    claim = eventually(lambda: env.find("pvc", "loop-workspace"), "the claim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert not claim["metadata"].get("ownerReferences"), "the default is to keep it"


def test_a_strangers_job_survives(env: KwokEnv) -> None:
    env.apply()
    name = env.first_job_name()
    env.stranger(name)
    env.operator.start()
    conflict = env.wait("NameConflict")
    assert name in conflict["message"]
    assert env.kubectl.get("job", name)["metadata"]["labels"] == {"whose": "not-yours"}
    env.kubectl("delete", "job", name)
    env.wait("Complete")


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"template": {"patches": [{"op": "remove", "path": "/spec/nothing"}]}}, "spec.template.patches[1]"),
        ({"policy": {"baseModel": "builtin://no-such-model"}}, "spec.policy.baseModel"),
    ],
    ids=["cannot be rendered", "not supported"],
)
def test_a_cycle_that_cannot_be_run_is_told(env: KwokEnv, changes: dict[str, Any], path: str) -> None:
    env.operator.start()
    env.apply(**changes)
    env.told("InvalidSpec", re.escape(path))
    assert env.created_jobs() == []


def test_deleting_the_cycle_takes_its_jobs_and_pods(env: KwokEnv) -> None:
    env.operator.start()
    env.apply(annotations_of={"prepare": behaviour(run="forever", term_exit_code=85)})
    env.running("prepare", 0)
    env.kubectl("delete", "medgr2cycle", "loop", "--wait=false")
    eventually(lambda: not env.kubectl.get("jobs")["items"], "the Jobs are gone")
    eventually(lambda: not env.kubectl.get("pods")["items"], "the pods are gone")
    assert env.find("pvc", "medgr2-data"), "the user's claim stays"


def test_a_finished_cycle_goes_after_its_time(env: KwokEnv) -> None:
    env.operator.start()
    env.apply(ttlSecondsAfterFinished=1)
    eventually(lambda: env.find("medgr2cycle", "loop") is None, "it is gone", 120)


def test_no_object_stops_the_others(env: KwokEnv, tmp_path: Path) -> None:
    """What the API server takes, however deep, large or senseless: it is told, and the process goes on."""
    env.operator = env.replica("program", Operator)
    env.operator.start()
    started = env.operator.pid
    pod = "/spec/template/spec"
    deep = "[" * 9_000 + "]" * 9_000  # by hand: Python's own writer sees an endless recursion in it
    hostile: dict[str, dict[str, Any]] = {
        "deep": {"template": {"patches": [{"op": "add", "path": "/metadata/annotations/x", "value": "DEEP"}]}},
        "doubles": {
            "template": {"patches": [{"op": "copy", "from": pod, "path": f"{pod}/x{n}"} for n in range(50)]},
        },
        "two": {"stages": [{"name": "sft", "resources": {"limits": {"nvidia.com/gpu": "two"}}}]},
        "list": {"template": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [1]}}}},
        "env": {"template": {"env": [{"name": "A", "valueFrom": {"secretKeyRef": "s"}}]}},
    }
    document = yaml.safe_load(QUICKSTART.read_text())
    for name, spec in hostile.items():
        text = json.dumps({**document, "metadata": {"name": name}, "spec": {**document["spec"], **spec}})
        file = tmp_path / f"{name}.json"
        file.write_text(text.replace('"DEEP"', deep))
        env.kubectl("create", "-f", str(file))
    env.apply()
    env.wait("Complete")
    reason = '{.status.conditions[?(@.type=="Progressing")].reason}'
    for name in hostile:
        told = env.kubectl("get", "medgr2cycle", name, "-o", f"jsonpath={reason}")
        assert told == "InvalidSpec", name
    assert env.operator.pid == started, "it is the process that was started"
    assert env.operator.alive()
