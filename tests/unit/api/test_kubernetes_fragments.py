"""Fragments of Kubernetes objects in a cycle: what Kubernetes would refuse is refused where it is written."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.support.cycle_documents import changed

from medgr2_api.cycle import Cycle
from medgr2_api.kubernetes_fragments import quantity
from medgr2_api.unsupported import unsupported
from medgr2_operator.kube import shapes

ROOT = Path(__file__).parents[3]
GOOD: dict[str, Any] = {
    "template.tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": None}],
    "template.affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]
            }
        }
    },
    "template.env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}],
    "template.envFrom": [{"prefix": "X_", "secretRef": {"name": "s"}}],
    "template.imagePullSecrets": [{"name": "registry"}],
    "template.securityContext": {"runAsUser": None, "sysctls": [{"name": "net.core.somaxconn", "value": "1024"}]},
    "template.nodeSelector": {"nvidia.com/gpu.product": "H100", "pool": ""},
    "stages": [
        {"name": "sft", "resources": {"limits": {"nvidia.com/gpu": 8, "cpu": "2500m", "memory": "1.5Gi"}}},
        {"name": "grpo", "resources": {"limits": None, "requests": {"cpu": 0.5, "memory": "1e9"}}},
        {"name": "score", "resources": {"claims": [{"name": "gpu"}]}},
    ],
    "workspace": {
        "volumeClaimTemplate": {
            "metadata": {"labels": {"team": "imaging"}},
            "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "5Gi"}}},
        }
    },
}


def problems(path: str, value: Any) -> str:
    """What the models say to a value; empty: nothing."""
    try:
        Cycle.model_validate(changed({f"spec.{path}": value}))
    except ValidationError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("path", GOOD)
def test_what_kubernetes_accepts_is_accepted(path: str) -> None:
    assert problems(path, GOOD[path]) == ""


def resources(**parts: Any) -> list[dict[str, Any]]:
    return [{"name": "sft", "resources": parts}]


@pytest.mark.parametrize(
    ("path", "value", "what"),
    [
        ("stages", resources(limits={"nvidia.com/gpu": "two"}), "limits.nvidia.com/gpu: 'two' is not a quantity"),
        ("stages", resources(limits={"nvidia.com/gpu": "500m"}), "not a whole number of devices"),
        ("stages", resources(limits={"amd.com/gpu": 0.5}), "not a whole number of devices"),
        ("stages", resources(limits={"memory": "10Gb"}), "'10Gb' is not a quantity"),
        ("stages", resources(limits={"memory": True}), "is not a quantity"),
        ("stages", resources(limits={"memory": {}}), "an object is not a quantity"),
        ("stages", resources(limits={"memory": "-1Gi"}), "must not be negative"),
        ("stages", resources(limits=["cpu"]), "limits: must be an object"),
        ("stages", resources(limit={"cpu": 1}), "limit: unknown field; known here are claims, limits, requests"),
        ("stages", resources(limits={"cpu": 1}, requests={"cpu": 2}), "requests.cpu: 2 must be at most the limit, 1"),
        ("stages", resources(limits={"a.b/c": 2}, requests={"a.b/c": 1}), "must be equal to the limit"),
        ("stages", resources(claims=["gpu"]), r"claims\[0\]: must be an object"),
        ("stages", [{"name": "sft", "tolerations": ["gpu"]}], "dict"),
        ("template.tolerations", [{"key": 1}], "key: 1 is not text: put it in quotes"),
        ("template.tolerations", [{"key": "a", "effect": "NoSchedul"}], "is not one of NoSchedule, PreferNoSchedule"),
        ("template.tolerations", [{"operator": "Equal", "value": "x"}], "without a key the operator must be Exists"),
        ("template.tolerations", [{"key": "a", "tolerationSeconds": "5"}], "'5' is not an integer"),
        ("template.affinity", {"nodeAffinity": []}, "nodeAffinity: must be an object"),
        ("template.affinity", {"podAffinty": {}}, "podAffinty: unknown field"),
        (
            "template.affinity",
            {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"topologyKey": "zone"}}},
            r"must be a list \('- item' lines\), not an object",
        ),
        (
            "template.affinity",
            {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"labelSelector": {}}]}},
            "topologyKey: missing",
        ),
        ("template.env", [{"name": "A", "valueFrom": {"secretKeyRef": "s"}}], "secretKeyRef: must be an object"),
        ("template.env", [{"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "a"}}}], "remove one"),
        ("template.env", [{"name": "A=B", "value": "x"}], "has no '='"),
        ("template.envFrom", [{"configMapRef": "c"}], "configMapRef: must be an object"),
        ("template.envFrom", [{"configMap": {"name": "c"}}], "configMap: unknown field"),
        ("template.imagePullSecrets", [{"name": 7}], "name: 7 is not text"),
        ("template.imagePullSecrets", ["registry"], "dict"),
        ("template.securityContext", {"runAsUser": "root"}, "runAsUser: 'root' is not an integer"),
        ("template.securityContext", {"runAsUser": True}, "runAsUser: True is not an integer"),
        ("template.securityContext", {"privileged": True}, "privileged: unknown field"),
        ("template.securityContext", {"runAsUser": 10**30}, "too large"),
        ("template.nodeSelector", {"pool": "a b"}, "is no label's value"),
        ("template.nodeSelector", {"a pool": "b"}, "is no key of a label"),
        ("template.patches", [{"value": json.loads("[" * 100 + "]" * 100)}], "nested more than 64 levels deep"),
        ("workspace", {"volumeClaimTemplate": {"spec": {"accessModes": "RWX"}}}, "accessModes: must be a list"),
        ("workspace", {"volumeClaimTemplate": {"spec": {"storage": "5Gi"}}}, "storage: unknown field"),
        ("policy.sft.trainer", {"a": json.loads("[" * 100 + "]" * 100)}, "nested more than 64 levels deep"),
    ],
    ids=str,
)  # fmt: skip
def test_a_fragment_of_the_wrong_shape_is_refused(path: str, value: Any, what: str) -> None:
    with pytest.raises(AssertionError, match=what):
        assert problems(path, value) == ""


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2", Decimal(2)),
        (2, Decimal(2)),
        (0.5, Decimal("0.5")),
        ("500m", Decimal("0.5")),
        ("1.5Gi", Decimal(3 * 2**29)),
        ("1e3", Decimal(1000)),
        ("1E", Decimal(10**18)),
        (".5k", Decimal(500)),
        ("two", None),
        ("", None),
        ("1 Gi", None),
        ("1e", None),
        ("NaN", None),
        ("1GiB", None),
        ("9" * 5000, None),
        (10**30, None),
        (float("inf"), None),
        (True, None),
        (None, None),
        ([], None),
    ],
)
def test_quantities(text: Any, number: Decimal | None) -> None:
    assert quantity(text) == number


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def _damaged(good: Any, bad: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The value with something else at one place of it."""
    if isinstance(good, dict):
        inner = st.sampled_from(sorted(good)).flatmap(
            lambda key: _damaged(good[key], bad).map(lambda value: {**good, key: value})
        )
        return bad | inner | st.dictionaries(st.text(max_size=8), bad, max_size=2).map(lambda more: {**good, **more})
    if isinstance(good, list) and good:
        inner = st.integers(0, len(good) - 1).flatmap(
            lambda at: _damaged(good[at], bad).map(lambda value: [*good[:at], value, *good[at + 1 :]])
        )
        return bad | inner
    return bad


DAMAGED = st.sampled_from(sorted(GOOD)).flatmap(lambda path: st.tuples(st.just(path), _damaged(GOOD[path], ANYTHING)))


@settings(max_examples=300, deadline=None)
@given(DAMAGED)
def test_whatever_stands_in_a_fragment_it_is_refused_in_words_or_can_be_used(damaged: tuple[str, Any]) -> None:
    path, value = damaged
    try:
        cycle = Cycle.model_validate(changed({f"spec.{path}": value}))
    except ValidationError:
        return
    unsupported(cycle.spec)


def test_the_shapes_are_those_of_the_installed_client() -> None:
    assert shapes.main(["--check"]) == 0


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_stay_valid(example: Path) -> None:
    for document in yaml.safe_load_all(example.read_text()):
        if document.get("kind") == "MedGR2Cycle":
            Cycle.model_validate(document, by_alias=True, by_name=False)
