"""The API server decides about cycles as the cases say, and takes every example."""

from __future__ import annotations

import os
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.client import ApiException, CustomObjectsApi

from medgr2_api.crd import NEVER_OBSERVED
from tests.cluster.control_plane import ControlPlane
from tests.cluster.fixtures import Kubectl, eventually, fresh_namespace
from tests.support.cycle_documents import HERE, changed

pytestmark = pytest.mark.cluster

Document = dict[str, Any]
CASES: list[Document] = yaml.safe_load((HERE / "rule_cases.yaml").read_text())
EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
KIND = {"group": "medgr2.io", "version": "v1alpha1", "plural": "medgr2cycles"}


@pytest.fixture(scope="module")
def cycles(control_plane: ControlPlane, crd: str) -> Iterator[Cycles]:
    """The cycles of one namespace."""
    with fresh_namespace(control_plane, "rules") as namespace:
        yield Cycles(control_plane, namespace)


class Cycles:
    """What the API server says to cycles; unknown fields are refused, as kubectl asks for."""

    def __init__(self, control_plane: ControlPlane, namespace: str) -> None:
        self._api: Any = CustomObjectsApi(control_plane.client())
        self._where = {**KIND, "namespace": namespace, "field_validation": "Strict"}

    def create(self, document: Document, dry_run: str | None = None) -> Any:
        return self._api.create_namespaced_custom_object(**self._where, body=document, dry_run=dry_run)

    def replace(self, document: Document) -> Any:
        return self._api.replace_namespaced_custom_object(
            **self._where, name=document["metadata"]["name"], body=document
        )


def test_the_crd_is_served(control_plane: ControlPlane, crd: str) -> None:
    assert crd == "medgr2cycles.medgr2.io"
    assert "medgr2cycles" in control_plane.kubectl("api-resources", "--api-group=medgr2.io", "-o", "name")
    # the API server adds a CRD to its OpenAPI documents some time after it is established
    explained = eventually(
        lambda: "iterations" in control_plane.kubectl("explain", "medgr2cycles.spec", check=False), "kubectl explain"
    )
    assert explained


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_api_server_decides_as_the_case_says(cycles: Cycles, case: Document) -> None:
    document = changed(case.get("set", {}))
    for path in case.get("unset", []):
        *parents, leaf = path.split(".")
        target = document
        for name in parents:
            target = target[name]
        del target[leaf]

    def ask() -> None:
        if "old" not in case:
            cycles.create(document, dry_run="All")
            return
        old = changed(case["old"])
        old["metadata"]["name"] = f"update-{os.urandom(4).hex()}"
        new = deepcopy(document)
        new["metadata"] = cycles.create(old)["metadata"]
        cycles.replace(new)

    refused = case.get("refused", [])
    if not refused:
        ask()
        return
    with pytest.raises(ApiException) as caught:
        ask()
    assert caught.value.status in (400, 422)
    expected = [refused] if isinstance(refused, str) else refused
    assert any(message in str(caught.value.body) for message in expected), str(caught.value.body)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_accepted(kubectl: Kubectl, crd: str, path: Path) -> None:
    assert "created (server dry run)" in kubectl("create", "-f", str(path), "--dry-run=server", "--validate=strict")


def test_the_status_is_kept_apart(cycles: Cycles) -> None:
    document = changed({"metadata.name": "status"}) | {"status": {"phase": "Complete"}}
    assert cycles.create(document, dry_run="All")["status"] == NEVER_OBSERVED
