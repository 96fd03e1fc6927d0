"""Names and labels: valid for every legal cycle, and the way back to the attempt."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import kubernetes_rules as rules
from tests.support.render_cases import CASES, SETTINGS, UID, Case

from medgr2_api.cycle import Cycle, Metadata
from medgr2_api.stage_contract import ArtifactRef
from medgr2_api.stages import stage_names
from medgr2_operator.plan.types import AttemptKey
from medgr2_operator.render import egress, labels
from medgr2_operator.render.job import job
from medgr2_operator.render.pvc import claim, claim_name
from medgr2_operator.render.render_context import RenderError
from medgr2_operator.render.rendezvous import service_name
from medgr2_operator.render.volume_reader_pod import reader_pod

NAMES = st.from_regex(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True) | st.just("c" * 63)
TOKENS = st.just("") | st.from_regex(r"[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?", fullmatch=True)
KEYS = st.builds(AttemptKey, st.integers(0, 20), st.sampled_from(stage_names()), TOKENS, st.integers(1, 10_000))
_STAGES = ("reward", "sft", "grpo")


@settings(deadline=None)
@given(
    NAMES,
    st.sampled_from(["prepare", "reward", "sft", "grpo", "preferences", "evaluate"]),
    TOKENS,
    st.integers(0, 20),
    st.integers(1, 10_000),
    st.sampled_from([{"numNodes": 1000}, {"shards": 1000}, {}]),
)
def test_objects_have_legal_names_and_labels(
    name: str, stage: str, token: str, iteration: int, attempt: int, size: dict[str, Any]
) -> None:
    case = Case(stage, {"stages": [{"name": stage, **size}]}, {}, name, iteration, token=token, attempt=attempt)
    *services, rendered = job(case.cycle(), case.create(), SETTINGS)
    assert rules.job_violations(rendered) == []
    for service in services:
        assert _is_dns_label(service["metadata"]["name"])
        pod = rendered["spec"]["template"]
        assert pod["spec"]["subdomain"] == service["metadata"]["name"]
        assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
        variables = {v["name"]: v.get("value") for v in pod["spec"]["containers"][0]["env"]}
        host, _, port = variables["MEDGR2_RDZV_ENDPOINT"].rpartition(":")
        assert port == str(service["spec"]["ports"][0]["port"])
        assert host == f"{rendered['metadata']['name']}-0.{service['metadata']['name']}.ml.svc"
        assert all(_is_dns_label(part) for part in host.split("."))


@settings(deadline=None)
@given(NAMES)
def test_claims_have_legal_names(name: str) -> None:
    case = Case("prepare", CASES["volume-claim-template"].spec, {}, name)
    pvc = claim(case.cycle())
    assert pvc is not None
    assert pvc["metadata"]["name"] == claim_name(case.cycle())
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", pvc["metadata"]["name"])
    assert len(pvc["metadata"]["name"]) <= 253


@settings(deadline=None)
@given(NAMES, KEYS)
def test_labels_lead_back_to_the_attempt(name: str, key: AttemptKey) -> None:
    assert labels.attempt_key(labels.of_attempt(_cycle(name), key)) == key


@settings(deadline=None)
@given(KEYS, KEYS)
def test_labels_tell_attempts_apart(one: AttemptKey, other: AttemptKey) -> None:
    assert (labels.of_attempt(_cycle(), one) == labels.of_attempt(_cycle(), other)) == (one == other)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_jobs_and_pods_lead_back_to_the_attempt(case: Case) -> None:
    rendered = job(case.cycle(), case.create(), SETTINGS, case.single_node)[-1]
    for metadata in (rendered["metadata"], rendered["spec"]["template"]["metadata"]):
        assert labels.attempt_key(metadata["labels"]) == case.create().key


@pytest.mark.parametrize(
    ("label", "value"),
    [
        (labels.ITERATION, None),
        (labels.ITERATION, "01"),
        (labels.ITERATION, "-1"),
        (labels.ITERATION, "two"),
        (labels.ITERATION, "²"),
        (labels.STAGE, None),
        (labels.STAGE, "dance"),
        (labels.TOKEN, None),
        (labels.ATTEMPT, None),
        (labels.ATTEMPT, "0"),
        (labels.ATTEMPT, ""),
    ],
)
def test_strangers_labels_name_no_attempt(label: str, value: str | None) -> None:
    foreign = labels.of_attempt(_cycle(), AttemptKey(1, "sft", "", 1)) | {label: value or ""}
    if value is None:
        del foreign[label]
    assert labels.attempt_key(foreign) is None


def test_services_differ_by_stage_and_by_cycle() -> None:
    long = "c" * 63
    cycles = [_cycle(long), _cycle(long, "another"), _cycle("c" * 62, "third")]
    names = {service_name(cycle, stage) for cycle in cycles for stage in _STAGES}
    assert len(names) == len(cycles) * len(_STAGES)


def _is_dns_label(text: str) -> bool:
    return len(text) <= 63 and rules.DNS_LABEL.fullmatch(text) is not None


@pytest.mark.parametrize(
    ("inputs", "share", "need"), [(["student"], 1.0, "none"), (["student"], 0.9, "external"), ([], 1.0, "external")]
)
def test_a_student_that_answers_everything_needs_no_provider(inputs: list[str], share: float, need: str) -> None:
    """Label, secret and all that goes with a provider follow from what the stage was given, not from the spec alone."""
    key = {"name": "gemini-key", "key": "k"}
    case = Case("generate", {"generator": {"gemini": {"model": "m", "apiKeySecretRef": key}}})
    create = case.create()
    student = ArtifactRef(stage="distill", iteration=1, path="artifacts/distill/x", output_digest="4e" * 32)
    create.request.parameters["student"] = {"share": share, "maxAttempts": 4}
    create.request.inputs.update(dict.fromkeys(inputs, student))
    *_, made = job(case.cycle(), create, SETTINGS)
    assert made["spec"]["template"]["metadata"]["labels"][egress.LABEL] == need
    assert ("gemini-key" in str(made["spec"]["template"]["spec"]["volumes"])) is (need == "external")


_KEY = {"name": "tracking", "key": "token"}


def _cycle(name: str = "omnimed", uid: str = UID) -> Cycle:
    return Cycle.model_construct(metadata=Metadata(name=name, namespace="ml", uid=uid))


@pytest.mark.parametrize(
    ("stage", "generator", "need"),
    [
        ("prepare", {}, "fetch"),
        ("generate", {"openAI": {"model": "m", "baseURL": "http://vllm.models.svc/v1"}}, "site"),
        ("generate", {"openAI": {"model": "m", "baseURL": "https://api.example.com/v1"}}, "external"),
        ("generate", {"openAI": {"model": "m", "baseURL": "http://134744072/v1"}}, "external"),
        ("generate", {"openAI": {"model": "m", "baseURL": "https://gpu.example.com/v1", "external": False}}, "site"),
        ("generate", {"gemini": {"model": "m", "apiKeySecretRef": {"name": "g", "key": "k"}}}, "external"),
        ("generate", {"plugin": {"name": "p", "version": "1", "model": "m"}}, "external"),
        ("generate", {"plugin": {"name": "p", "version": "1", "model": "m", "external": False}}, "site"),
        ("generate", {"vllm": {"model": "org/vlm"}}, "fetch"),
        ("generate", {}, "none"),  # the scripted generator
        *((stage, {}, "none") for stage in ("reward", "score", "curate", "sft", "grpo", "preferences", "evaluate")),
    ],
)
def test_what_a_pod_needs_the_network_for(stage: str, generator: dict[str, Any], need: str) -> None:
    drawn = {"sources": [{"name": "seed", "format": "Phantom", "phantom": {}}]}
    spec = {"generator": generator or {"scripted": {}}, **({} if generator else {"data": drawn})}
    case = Case(stage, spec, iteration=0 if stage == "prepare" else 2)
    *_, made = job(case.cycle(), case.create(), SETTINGS)
    assert made["spec"]["template"]["metadata"]["labels"][egress.LABEL] == need
    collecting = Case(stage, case.spec, {"collect": True}, iteration=case.iteration)
    *_, made = job(collecting.cycle(), collecting.create(), SETTINGS)
    assert made["spec"]["template"]["metadata"]["labels"][egress.LABEL] == "none"


@pytest.mark.parametrize(
    ("tracking", "need", "secrets"),
    [
        ({"mlflow": {}, "wandb": {}}, "none", []),
        ({"mlflow": {"trackingURI": "http://mlflow.ml.svc:5000", "tokenSecretRef": _KEY}}, "site", ["tracking"]),
        ({"mlflow": {"trackingURI": "https://mlflow.example.com"}, "allowExternal": True}, "external", []),
        ({"wandb": {"mode": "Online", "apiKeySecretRef": _KEY}, "allowExternal": True}, "external", ["tracking"]),
        ({"wandb": {"mode": "Offline", "apiKeySecretRef": _KEY}}, "none", []),
    ],
)
def test_a_training_reaches_those_who_follow_it(tracking: dict[str, Any], need: str, secrets: list[str]) -> None:
    case = Case("sft", request={"tracking": tracking})
    *_, made = job(case.cycle(), case.create(), SETTINGS)
    assert made["spec"]["template"]["metadata"]["labels"][egress.LABEL] == need
    volumes = made["spec"]["template"]["spec"]["volumes"]
    assert [volume["secret"]["secretName"] for volume in volumes if "secret" in volume] == secrets
    collecting = Case("sft", request={"tracking": tracking, "collect": True})
    *_, made = job(collecting.cycle(), collecting.create(), SETTINGS)
    assert made["spec"]["template"]["metadata"]["labels"][egress.LABEL] == "none"
    assert not [volume for volume in made["spec"]["template"]["spec"]["volumes"] if "secret" in volume]


def test_the_users_labels_and_annotations_are_the_pods() -> None:
    words = {"sidecar.istio.io/inject": "false"}
    annotations = {**words, "note": "any text, also: $(THIS)"}
    case = Case("sft", {"template": {"labels": words, "annotations": annotations}})
    metadata = job(case.cycle(), case.create(), SETTINGS)[-1]["spec"]["template"]["metadata"]
    assert metadata["labels"].items() >= words.items()
    assert metadata["labels"].items() >= labels.of_attempt(case.cycle(), case.create().key).items()
    assert metadata["annotations"] == annotations
    reader = reader_pod(case.cycle(), "reader", "image", 60, SETTINGS)["metadata"]
    assert reader["labels"].items() >= words.items()
    assert reader["annotations"] == annotations


@pytest.mark.parametrize("key", ["medgr2.io/cycle", "medgr2.io/new", labels.MANAGED_BY, labels.NAME, labels.COMPONENT])
def test_the_operators_labels_are_its_own(key: str) -> None:
    case = Case("sft", {"template": {"labels": {key: "x"}}})
    with pytest.raises(RenderError, match=rf"^spec\.template\.labels\.{key}: is the operator's"):
        job(case.cycle(), case.create(), SETTINGS)
