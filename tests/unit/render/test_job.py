"""What a Job says to the Job controller and to Kueue; the claim."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.support.render_cases import CASES, SETTINGS, Case

from medgr2_api.stage_contract import PERMANENT_EXIT_CODES
from medgr2_operator.render import labels
from medgr2_operator.render.job import PRIORITY_LABEL, QUEUE_LABEL, job
from medgr2_operator.render.pvc import claim
from medgr2_operator.render.render_context import RenderError

#: How a pod ends that was asked to: no rule may match these, or a Job fails whose pods its queue has stopped. They are
#: counted, and the limit of 0 fails the Job of a pod that nobody stopped.
ASKED = {85, 143}
QUEUEING = {"queueName": "gpu", "workloadPriorityClassName": "low", "inFlightPriorityClassName": "high"}


def render(case: Case) -> dict[str, Any]:
    """The Job of a case."""
    return job(case.cycle(), case.create(), SETTINGS, case.single_node)[-1]


def verdict(spec: dict[str, Any], exit_code: int, *, disrupted: bool = False) -> str:
    """What the Job controller does about a failed pod: the first rule that matches."""
    for rule in spec["podFailurePolicy"]["rules"]:
        if codes := rule.get("onExitCodes"):
            assert codes["containerName"] == "main"
            if (exit_code in codes["values"]) == (codes["operator"] == "In"):
                return str(rule["action"])
        elif disrupted and {"type": "DisruptionTarget", "status": "True"} in rule["onPodConditions"]:
            return str(rule["action"])
    return "Count"


@pytest.mark.parametrize("name", ["plain", "two-nodes", "vllm"])
def test_any_failure_ends_the_job(name: str) -> None:
    spec = render(CASES[name])["spec"]
    assert spec["backoffLimit"] == 0
    assert {code for code in range(1, 256) if verdict(spec, code) != "FailJob"} == ASKED
    assert {verdict(spec, code, disrupted=True) for code in ASKED} == {"FailJob"}


def test_a_shard_fails_alone_unless_all_would() -> None:
    spec = render(CASES["shards"])["spec"]
    assert "backoffLimit" not in spec
    assert spec["backoffLimitPerIndex"] == 0
    assert {code for code in range(1, 256) if verdict(spec, code) == "FailJob"} == set(PERMANENT_EXIT_CODES)
    assert {code for code in range(1, 256) if verdict(spec, code) == "Count"} == ASKED
    assert {verdict(spec, code, disrupted=True) for code in ASKED} == {"FailIndex"}


def test_a_disruption_has_its_own_rule() -> None:
    """Not left to the exit code: an evicted pod may have none."""
    for case in CASES.values():
        assert any("onPodConditions" in rule for rule in render(case)["spec"]["podFailurePolicy"]["rules"])


@pytest.mark.parametrize(
    ("size", "mode", "pods", "kinds"),
    [
        ({}, "NonIndexed", 1, ["Job"]),
        ({"numProcPerNode": 8}, "NonIndexed", 1, ["Job"]),
        ({"numNodes": 3}, "Indexed", 3, ["Service", "Job"]),
        ({"shards": 3}, "Indexed", 3, ["Job"]),
        ({"shards": 3, "numProcPerNode": 2}, "Indexed", 3, ["Job"]),
    ],
)
def test_how_many_pods(size: dict[str, Any], mode: str, pods: int, kinds: list[str]) -> None:
    case = Case("evaluate", {"stages": [{"name": "evaluate", **size}]})
    objects = job(case.cycle(), case.create(), SETTINGS)
    assert [manifest["kind"] for manifest in objects] == kinds
    spec = objects[-1]["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == (mode, pods, pods)
    names = {variable["name"] for variable in spec["template"]["spec"]["containers"][0]["env"]}
    assert ("MEDGR2_RDZV_ENDPOINT" in names) == any(size.get(name, 1) > 1 for name in ("numNodes", "numProcPerNode"))
    assert ("subdomain" in spec["template"]["spec"]) == ("Service" in kinds)


def test_shards_over_several_nodes_are_refused() -> None:
    with pytest.raises(RenderError, match=r"spec\.stages\[sft\]\.shards: .* not both"):
        render(Case("sft", {"stages": [{"name": "sft", "shards": 2, "numNodes": 2}]}))


@pytest.mark.parametrize(
    ("queueing", "own", "resumes", "queue", "priority"),
    [
        (None, None, False, None, None),
        (QUEUEING, None, False, "gpu", "low"),
        (QUEUEING, None, True, "gpu", "high"),
        (QUEUEING, "cpu", True, "cpu", "high"),
        (QUEUEING, "", True, None, None),
        ({**QUEUEING, "inFlightPriorityClassName": ""}, None, True, "gpu", "low"),
        ({"queueName": "gpu"}, None, True, "gpu", None),
        (None, "cpu", True, "cpu", None),
    ],
)
def test_kueue(
    queueing: dict[str, Any] | None, own: str | None, resumes: bool, queue: str | None, priority: str | None
) -> None:
    stage: dict[str, Any] = {"name": "sft", **({"queueName": own} if own is not None else {})}
    spec = {"stages": [stage], **({"queueing": queueing} if queueing else {})}
    manifest = render(Case("sft", spec, resumes=resumes))
    job_labels = manifest["metadata"]["labels"]
    assert (job_labels.get(QUEUE_LABEL), job_labels.get(PRIORITY_LABEL)) == (queue, priority)
    assert manifest["spec"].get("suspend") == (True if queue else None)
    # on a pod, the label would make Kueue queue the pod by itself
    assert not any("kueue" in label for label in manifest["spec"]["template"]["metadata"]["labels"])


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"queueing": {"queueName": "a/b"}}, r"spec\.queueing\.queueName"),
        ({"queueing": {"queueName": "gpu", "workloadPriorityClassName": "a b"}}, "workloadPriorityClassName"),
        ({"stages": [{"name": "sft", "queueName": "-"}]}, r"spec\.stages\[sft\]\.queueName"),
    ],
)
def test_what_cannot_be_a_label_is_refused(spec: dict[str, Any], path: str) -> None:
    with pytest.raises(RenderError, match=path):
        render(Case("sft", spec))


def test_no_claim_where_the_user_brings_one() -> None:
    assert claim(CASES["plain"].cycle()) is None
    volumes = render(CASES["plain"])["spec"]["template"]["spec"]["volumes"]
    assert volumes[0]["persistentVolumeClaim"] == {"claimName": "data"}


@pytest.mark.parametrize("when_deleted", ["Retain", "Delete"])
def test_a_retained_claim_belongs_to_nobody(when_deleted: str) -> None:
    case = CASES["volume-claim-template"]
    workspace = {**case.spec["workspace"], "retention": {"whenDeleted": when_deleted}}
    pvc = claim(replace(case, spec={**case.spec, "workspace": workspace}).cycle())
    assert pvc is not None
    kept = when_deleted == "Retain"
    assert ("ownerReferences" in pvc["metadata"]) != kept
    assert (labels.CYCLE_UID in pvc["metadata"]["labels"]) != kept
    assert pvc["metadata"]["labels"][labels.CYCLE] == "omnimed"
    assert pvc["metadata"]["labels"]["backup"] == "daily"
