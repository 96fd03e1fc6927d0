"""What a platform does not let cycles ask for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.support.render_cases import CASES, SETTINGS, Case

from medgr2_operator.render.cycle_policy import CyclePolicy
from medgr2_operator.render.job import job
from medgr2_operator.render.render_context import NotAllowedError
from medgr2_operator.runtime.settings import SettingsError, from_environment

POD = "/spec/template/spec"
KEY = {"name": "s", "key": "k"}
MINE = "registry.example/medgr2"
CYCLES_ONLY = CyclePolicy(
    allow_patches=False,
    allow_service_accounts=False,
    allow_host_access=False,
    allowed_images=("registry.example/medgr2",),
    allowed_secrets=("medgr2-*",),
    refused_namespace="medgr2",
)
#: Patches allowed, so that what they make can be looked at.
PATCHED = replace(CYCLES_ONLY, allow_patches=True)


def render(case: Case, policy: CyclePolicy) -> None:
    job(case.cycle(), case.create(), replace(SETTINGS, policy=policy))


def patched(*operations: dict[str, Any]) -> Case:
    return Case("sft", {"template": {"patches": list(operations)}})


def add(path: str, value: Any) -> dict[str, Any]:
    return {"op": "add", "path": path, "value": value}


@pytest.mark.parametrize("name", CASES)
def test_by_default_everything_is_allowed(name: str) -> None:
    render(CASES[name], CyclePolicy())


def test_a_plain_cycle_is_within_the_strictest_policy() -> None:
    render(Case("sft"), CYCLES_ONLY)
    mine = {"template": {"image": "registry.example/medgr2/jobs:2", "imagePullSecrets": [{"name": "medgr2-pull"}]}}
    render(Case("sft", mine), CYCLES_ONLY)
    render(Case("generate", {"generator": {"vllm": {"model": "m"}}}), CYCLES_ONLY)


@pytest.mark.parametrize(
    ("case", "where", "switch"),
    [
        (patched(add("/metadata/annotations", {})), "spec.template.patches", "allowPatches"),
        (
            Case("sft", {"stages": [{"name": "score", "patches": [add("/metadata/annotations", {})]}]}),
            "spec.stages[score].patches",
            "allowPatches",
        ),
        (Case("sft", {"template": {"serviceAccountName": "admin"}}), "spec.template.serviceAccountName", "Accounts"),
        (Case("sft", {"template": {"image": "evil/x"}}), "image evil/x", "allowedImages"),
        (Case("sft", {"stages": [{"name": "sft", "image": "docker.io/x"}]}), "image docker.io/x", "allowedImages"),
        (Case("sft", {"template": {"image": "registry.example/medgr2evil/x"}}), "medgr2evil", "allowedImages"),
        (
            Case("generate", {"generator": {"vllm": {"model": "m", "image": "mine:1"}}}),
            "image mine:1",
            "allowedImages",
        ),
        (
            Case("sft", {"template": {"env": [{"name": "A", "valueFrom": {"secretKeyRef": KEY}}]}}),
            "Secret s",
            "allowedSecrets",
        ),
        (Case("sft", {"template": {"envFrom": [{"secretRef": {"name": "db"}}]}}), "Secret db", "allowedSecrets"),
        (Case("sft", {"template": {"imagePullSecrets": [{"name": "pull"}]}}), "Secret pull", "allowedSecrets"),
        (CASES["shards"], "Secret provider", "allowedSecrets"),
        (Case("sft", {"template": {"securityContext": {"runAsUser": 0}}}), "securityContext.runAsUser", "allowHost"),
        (
            Case("sft", {"template": {"securityContext": {"seccompProfile": {"type": "Unconfined"}}}}),
            "seccompProfile",
            "allowHostAccess",
        ),
        (Case("sft", {"template": {"securityContext": {"runAsNonRoot": False}}}), "runAsNonRoot", "allowHostAccess"),
    ],
)  # fmt: skip
def test_what_is_not_allowed_is_named_with_its_switch(case: Case, where: str, switch: str) -> None:
    with pytest.raises(NotAllowedError) as caught:
        render(case, CYCLES_ONLY)
    assert where in str(caught.value)
    assert switch in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (f"{POD}/hostNetwork", True),
        (f"{POD}/hostPID", True),
        (f"{POD}/hostIPC", True),
        (f"{POD}/volumes/-", {"name": "x", "hostPath": {"path": "/"}}),
        (f"{POD}/containers/0/securityContext/privileged", True),
        (f"{POD}/containers/0/securityContext/allowPrivilegeEscalation", True),
        (f"{POD}/containers/0/securityContext/capabilities/add", ["SYS_ADMIN"]),
        (f"{POD}/containers/0/securityContext/runAsUser", 0),
        (f"{POD}/containers/0/ports/0/hostPort", 80),
        (f"{POD}/securityContext/windowsOptions", {"hostProcess": True}),
        (f"{POD}/containers/0/securityContext/seLinuxOptions", {"type": "spc_t"}),
        (f"{POD}/containers/0/securityContext/appArmorProfile", {"type": "Unconfined"}),
        (f"{POD}/containers/0/livenessProbe", {"httpGet": {"host": "169.254.169.254", "port": 80}}),
        (f"{POD}/containers/0/startupProbe", {"tcpSocket": {"host": "10.0.0.1", "port": 22}}),
        (f"{POD}/containers/0/lifecycle", {"postStart": {"httpGet": {"host": "evil.example", "port": 80}}}),
        (f"{POD}/volumes/-", {"name": "x", "image": {"reference": "evil/y"}}),
        (f"{POD}/initContainers", [{"name": "x", "image": MINE, "securityContext": {"runAsUser": 0}}]),
        (f"{POD}/containers/-", {"name": "x", "image": "evil/y"}),
        (f"{POD}/initContainers", [{"name": "x", "image": "evil/y"}]),
        (f"{POD}/serviceAccountName", "admin"),
        (f"{POD}/serviceAccount", "admin"),
        (f"{POD}/automountServiceAccountToken", True),
        (f"{POD}/volumes/-", {"name": "x", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}),
        (f"{POD}/volumes/-", {"name": "x", "projected": {"sources": [{"secret": {"name": "db"}}]}}),
        (f"{POD}/volumes/-", {"name": "x", "secret": {"secretName": "db"}}),
        (f"{POD}/volumes/-", {"name": "x", "csi": {"driver": "d", "nodePublishSecretRef": {"name": "db"}}}),
        (f"{POD}/containers/0/envFrom", [{"secretRef": {"name": "db"}}]),
    ],
    ids=str,
)  # fmt: skip
def test_a_switch_holds_for_what_patches_make(path: str, value: Any) -> None:
    with pytest.raises(NotAllowedError, match=r"cyclePolicy\."):
        render(patched(add(path, value)), PATCHED)
    render(patched(add(path, value)), CyclePolicy())


def test_the_operators_namespace_is_its_own() -> None:
    with pytest.raises(NotAllowedError, match=r"^metadata\.namespace: the operator runs here"):
        render(Case("sft"), replace(CYCLES_ONLY, refused_namespace="ml"))


def test_all_that_is_refused_is_named_at_once() -> None:
    with pytest.raises(NotAllowedError) as caught:
        render(Case("sft", {"template": {"serviceAccountName": "a", "image": "evil/x"}}), CYCLES_ONLY)
    assert "allowServiceAccounts" in str(caught.value)
    assert "allowedImages" in str(caught.value)


@pytest.mark.parametrize(
    ("image", "allowed", "fine"),
    [
        ("registry.example/team/x:1", "registry.example/team", True),
        ("registry.example/team:1", "registry.example/team", True),
        ("registry.example/team@sha256:0", "registry.example/team/", True),
        ("registry.example/teams/x", "registry.example/team", False),
        ("registry.example/team/x", "registry.example", True),
        ("registry.example.evil/x", "registry.example", False),
        ("python:3.12", "docker.io", True),
        ("python:3.12", "docker.io/library/python", True),
        ("team/x", "docker.io/team", True),
        ("team/x", "team/x", True),
        ("localhost:5000/x", "localhost:5000", True),
    ],
)
def test_images_are_below_what_is_allowed(image: str, allowed: str, fine: bool) -> None:
    case = Case("sft", {"template": {"image": image}})
    policy = CyclePolicy(allowed_images=(allowed,))
    if fine:
        render(case, policy)
    else:
        with pytest.raises(NotAllowedError):
            render(case, policy)


def test_the_chart_says_it_by_environment() -> None:
    given = {
        "MEDGR2_OPERATOR_ALLOW_PATCHES": "false",
        "MEDGR2_OPERATOR_ALLOW_SERVICE_ACCOUNTS": "false",
        "MEDGR2_OPERATOR_ALLOW_HOST_ACCESS": "false",
        "MEDGR2_OPERATOR_ALLOWED_IMAGES": "registry.example/medgr2",
        "MEDGR2_OPERATOR_ALLOWED_SECRETS": "medgr2-*",
        "MEDGR2_OPERATOR_NAMESPACE": "medgr2",
    }
    assert from_environment(given).render().policy == CYCLES_ONLY
    assert from_environment({}).render().policy == CyclePolicy(refused_namespace="default")
    assert from_environment({"MEDGR2_OPERATOR_KUBECONFIG": "x"}).render().policy == CyclePolicy()
    with pytest.raises(SettingsError):
        from_environment({"MEDGR2_OPERATOR_ALLOW_PATCHES": "perhaps"})
