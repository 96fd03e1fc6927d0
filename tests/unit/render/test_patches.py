"""The user's patches."""

from __future__ import annotations

import copy
import json
import tracemalloc
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.render_cases import SETTINGS, Case

from medgr2_operator.render import labels, patches
from medgr2_operator.render.job import job
from medgr2_operator.render.render_context import RenderError

FINE = {"op": "add", "path": "/metadata/annotations", "value": {"a": "b"}}
POD = "/spec/template/spec"
POINTERS = (
    "",
    "/",
    "/metadata",
    "/metadata/name",
    "/metadata/labels",
    "/metadata/labels/medgr2.io~1stage",
    "/metadata/labels/team",
    "/metadata/ownerReferences/0/uid",
    "/spec/template",
    "/spec/template/metadata/labels",
    f"{POD}/containers/0/env/0",
    f"{POD}/containers/-",
    f"{POD}/containers/9",
    f"{POD}/containers/{'9' * 5000}",
    f"{POD}/volumes",
    "metadata",
    "/~2",
    5,
    None,
)
VALUES = st.sampled_from([None, 1, "x", [], {}, {"labels": {}}, [{"name": "main"}]])


def render(template: list[Any], stage: list[Any] | None = None) -> dict[str, Any]:
    """A Job with patches."""
    spec = {"template": {"patches": template}, "stages": [{"name": "sft", "patches": stage or []}]}
    case = Case("sft", spec)
    return job(case.cycle(), case.create(), SETTINGS)[-1]


def identity(manifest: Any) -> list[Any]:
    """By what the operator knows a Job."""
    metadata, pod = manifest["metadata"], manifest["spec"]["template"]["metadata"]
    ours = list(labels.of_attempt(Case("sft").cycle(), Case("sft").create().key))
    return [
        manifest["apiVersion"],
        manifest["kind"],
        {name: metadata.get(name) for name in ("name", "namespace", "ownerReferences", "generateName")},
        [(metadata["labels"][name], pod["labels"][name]) for name in ours],
    ]


def test_a_stages_patches_come_after_the_templates() -> None:
    manifest = render(
        [{"op": "add", "path": f"{POD}/schedulerName", "value": "first"}],
        [{"op": "replace", "path": f"{POD}/schedulerName", "value": "second"}],
    )
    assert manifest["spec"]["template"]["spec"]["schedulerName"] == "second"


def test_patches_are_the_last_word() -> None:
    manifest = render([{"op": "replace", "path": f"{POD}/securityContext/runAsUser", "value": 7}])
    assert manifest["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == 7


def test_a_patch_of_what_a_patch_added_leaves_the_spec_alone() -> None:
    added = {"op": "add", "path": "/metadata/annotations", "value": {}}
    changed = {"op": "add", "path": "/metadata/annotations/a", "value": "b"}
    case = Case("sft", {"template": {"patches": [added, changed]}})
    cycle = case.cycle()
    assert job(cycle, case.create(), SETTINGS)[-1]["metadata"]["annotations"] == {"a": "b"}
    assert cycle.spec.template.patches[0]["value"] == {}


def test_further_labels_are_welcome() -> None:
    manifest = render([{"op": "add", "path": "/metadata/labels/team", "value": "imaging"}])
    assert manifest["metadata"]["labels"]["team"] == "imaging"
    assert "team" not in manifest["spec"]["template"]["metadata"]["labels"]


def test_a_patch_of_one_container_leaves_the_other_alone() -> None:
    case = Case(
        "generate",
        {
            "generator": {"vllm": {"model": "m"}},
            "template": {
                "env": [{"name": "A", "value": "1"}],
                "patches": [{"op": "replace", "path": f"{POD}/initContainers/0/env/4/value", "value": "2"}],
            },
        },
    )
    cycle = case.cycle()
    spec = job(cycle, case.create(), SETTINGS)[-1]["spec"]["template"]["spec"]
    assert spec["initContainers"][0]["env"][-1] == {"name": "A", "value": "2"}
    assert spec["containers"][0]["env"][-1] == {"name": "A", "value": "1"}
    assert cycle.spec.template.env == [{"name": "A", "value": "1"}]


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "replace", "path": "/metadata/name", "value": "other"},
        {"op": "replace", "path": "/metadata/namespace", "value": "other"},
        {"op": "add", "path": "/metadata/generateName", "value": "other-"},
        {"op": "remove", "path": "/metadata/ownerReferences"},
        {"op": "add", "path": "/metadata/ownerReferences/-", "value": {}},
        {"op": "replace", "path": "/metadata/ownerReferences/0/uid", "value": "other"},
        {"op": "replace", "path": "/kind", "value": "Pod"},
        {"op": "replace", "path": "/apiVersion", "value": "batch/v2"},
        {"op": "replace", "path": "/metadata/labels", "value": {}},
        {"op": "move", "from": "/metadata/labels/medgr2.io~1token", "path": "/metadata/labels/token"},
        {
            "op": "replace",
            "path": f"{POD.removesuffix('/spec')}/metadata/labels/medgr2.io~1egress",
            "value": "external",
        },
        {"op": "replace", "path": "", "value": {}},
        {"op": "replace", "path": "", "value": None},
        *(
            {"op": op, "path": f"{at}/labels/{label.replace('/', '~1')}", "value": "x"}
            for op in ("replace", "remove")
            for at in ("/metadata", "/spec/template/metadata")
            for label in labels.of_attempt(Case("sft").cycle(), Case("sft").create().key)
        ),
    ],
    ids=lambda operation: f"{operation['op']} {operation['path']}",
)
def test_what_the_operator_knows_a_job_by_stays(operation: dict[str, Any]) -> None:
    with pytest.raises(RenderError, match=r"^spec\.stages\[sft\]\.patches\[1\]: must not change ") as caught:
        render([FINE], [FINE, operation])
    assert caught.value.path == "spec.stages[sft].patches[1]"


@pytest.mark.parametrize(
    ("operation", "field"),
    [
        ({"op": "replace", "path": "/spec/completions", "value": 2}, "completions"),
        ({"op": "replace", "path": "/spec/parallelism", "value": 2}, "parallelism"),
        ({"op": "replace", "path": "/spec/completionMode", "value": "Indexed"}, "completionMode"),
        ({"op": "replace", "path": "/spec/backoffLimit", "value": 6}, "backoffLimit"),
        ({"op": "add", "path": "/spec/backoffLimitPerIndex", "value": 6}, "backoffLimitPerIndex"),
        ({"op": "remove", "path": "/spec/podFailurePolicy"}, "podFailurePolicy"),
        ({"op": "remove", "path": "/spec/podFailurePolicy/rules/0"}, "podFailurePolicy"),
        ({"op": "replace", "path": "/spec/podReplacementPolicy", "value": "x"}, "podReplacementPolicy"),
        ({"op": "add", "path": "/spec/suspend", "value": True}, "suspend"),
        ({"op": "add", "path": "/spec/activeDeadlineSeconds", "value": 60}, "activeDeadlineSeconds"),
        ({"op": "add", "path": "/spec/ttlSecondsAfterFinished", "value": 0}, "ttlSecondsAfterFinished"),
        ({"op": "add", "path": "/spec/manualSelector", "value": True}, "manualSelector"),
        ({"op": "add", "path": "/spec/managedBy", "value": "a.b/c"}, "managedBy"),
    ],
    ids=lambda value: value["path"] if isinstance(value, dict) else "",
)
def test_what_pods_and_attempts_are_counted_by_stays(operation: dict[str, Any], field: str) -> None:
    with pytest.raises(
        RenderError, match=rf"template\.patches\[1\]: must not change spec\.{field}: the operator counts"
    ):
        render([FINE, operation])


@pytest.mark.parametrize(
    "operation",
    [
        {},
        {"op": "frob", "path": "/spec"},
        {"op": "add", "path": "/spec"},
        {"op": "add", "path": "spec", "value": 1},
        {"op": "remove", "path": "/spec/nothing"},
        {"op": "add", "path": "/spec/nothing/deeper", "value": 1},
        {"op": "replace", "path": f"{POD}/containers/7/image", "value": "x"},
        {"op": "test", "path": "/kind", "value": "Pod"},
        {"op": "move", "from": "/spec/nothing", "path": "/spec/suspend"},
        {"op": "copy", "from": f"{POD}/containers/-", "path": "/spec/x"},
        {"op": "move", "from": f"{POD}/containers/-", "path": "/spec/x"},
        {"op": "remove", "path": f"{POD}/containers/-"},
        {"op": "add", "path": f"{POD}/containers/{'9' * 5000}", "value": {}},
        {"op": "copy", "from": f"{POD}/containers/{'9' * 5000}", "path": "/spec/x"},
    ],
    ids=lambda operation: str(operation)[:80],
)
def test_a_patch_that_does_not_apply_is_named(operation: dict[str, Any]) -> None:
    with pytest.raises(RenderError, match=r"^spec\.template\.patches\[1\]: does not apply: ") as caught:
        render([FINE, operation])
    assert len(str(caught.value)) < 300
    assert "{" not in str(caught.value)  # no part of the Job


@settings(deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "op": st.sampled_from(["add", "remove", "replace", "move", "copy", "test", "x", 1]),
                "path": st.sampled_from(POINTERS),
                "from": st.sampled_from(POINTERS),
                "value": VALUES,
            },
        ),
        max_size=3,
    )
)
def test_whatever_the_patch_the_job_is_known_or_the_patch_is_refused(operations: list[dict[str, Any]]) -> None:
    before = identity(render([]))
    try:
        after = render(operations)
    except RenderError as error:
        assert error.path.startswith("spec.template.patches[")  # noqa: PT017
    else:
        assert identity(after) == before


@pytest.mark.parametrize(
    "growing",
    [
        lambda n: {"op": "copy", "from": "/spec/template/spec", "path": f"/spec/template/spec/x{n}"},
        lambda n: {"op": "copy", "from": "/spec", "path": f"/spec/template/x{n}"},
        lambda n: {"op": "copy", "from": f"{POD}/containers", "path": f"{POD}/containers/-"},
        lambda n: {"op": "add", "path": f"/metadata/annotations/x{n}", "value": "y" * 20_000},
        lambda n: {"op": "add", "path": f"{POD}/x{n}", "value": [{}] * 5_000},
    ],
)
def test_a_patch_cannot_grow_the_job_without_bounds(growing: Any) -> None:
    operations = [FINE, *(growing(number) for number in range(63))]
    tracemalloc.start()
    with pytest.raises(RenderError, match=r"^spec\.template\.patches\[\d+\]: makes the Job larger than 256 KiB, what"):
        render(operations)
    assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    tracemalloc.stop()


class Touched:
    """Bytes that are written as JSON, read from it or copied: what patches cost."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes = 0
        dumps, loads, deepcopy = json.dumps, json.loads, copy.deepcopy

        def written(value: Any, **options: Any) -> str:
            text = dumps(value, **options)
            self.bytes += len(text)
            return text

        def read(text: str, **options: Any) -> Any:
            self.bytes += len(text)
            return loads(text, **options)

        def copied(value: Any, *memo: Any) -> Any:
            self.bytes += len(dumps(value, default=str))
            return deepcopy(value, *memo)

        monkeypatch.setattr(json, "dumps", written)
        monkeypatch.setattr(json, "loads", read)
        monkeypatch.setattr(copy, "deepcopy", copied)


MANY = {f"k{number}": "v" for number in range(10_000)}


@pytest.mark.parametrize("value", [{"a": "x" * 150_000}, MANY], ids=["one long text", "many short ones"])
@pytest.mark.parametrize(
    "again",
    [
        {"op": "copy", "from": "/metadata/annotations", "path": "/metadata/annotations"},
        {"op": "move", "from": "/metadata/annotations", "path": "/metadata/annotations"},
        {"op": "add", "path": "/metadata/annotations/x", "value": "y"},
        {"op": "test", "path": "/metadata/annotations/x", "value": "y"},
    ],
    ids=lambda operation: str(operation["op"]),
)
def test_the_work_of_all_patches_is_bounded(
    value: dict[str, str], again: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    large: dict[str, Any] = {"op": "add", "path": "/metadata/annotations", "value": {**value, "x": "y"}}
    touched = Touched(monkeypatch)
    with suppress(RenderError):
        render([large, *[again] * 63], [again] * 64)
    assert len(json.dumps(large)) * 2 < touched.bytes < 8 * patches.LARGEST


def chain(levels: int) -> dict[str, Any]:
    """An object in an object in an object …"""
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize("op", ["copy", "move"])
def test_a_patch_cannot_nest_the_job_without_bounds(op: str) -> None:
    operations: list[dict[str, Any]] = [
        {"op": "add", "path": f"{POD}/x", "value": chain(50)},
        {"op": "add", "path": f"{POD}/y", "value": chain(50)},
        {"op": op, "from": f"{POD}/x", "path": f"{POD}/y" + "/a" * 50},
        {"op": op, "from": f"{POD}/y", "path": f"{POD}/z"},
    ]
    with pytest.raises(RenderError, match=r"patches\[3\]: nests the Job more than 64 levels deep"):
        render(operations)


def test_a_patch_cannot_reach_deeper_than_a_job_is() -> None:
    with pytest.raises(RenderError, match=r"patches\[0\]: nests the Job more than 64 levels deep"):
        render([{"op": "add", "path": "/spec" + "/a" * 70, "value": 1}])


@pytest.mark.parametrize(
    ("operation", "what"),
    [
        ({"op": "replace", "path": f"{POD}/containers/0/image", "value": 5}, "image: 5 is not text"),
        ({"op": "add", "path": f"{POD}/volumes/-", "value": "data"}, "must be an object"),
        ({"op": "add", "path": f"{POD}/volumes/-", "value": {"name": "x", "hostpath": {}}}, "hostpath: unknown field"),
        ({"op": "remove", "path": f"{POD}/containers"}, "containers: missing"),
        ({"op": "remove", "path": POD}, r"spec\.template\.spec: missing"),
        ({"op": "replace", "path": POD, "value": None}, r"spec\.template\.spec: missing"),
        ({"op": "replace", "path": f"{POD}/securityContext", "value": "none"}, "must be an object"),
        ({"op": "add", "path": f"{POD}/containers/0/resources/limits", "value": {"cpu": "x"}}, "is not a quantity"),
    ],
)
def test_what_is_no_job_any_more_is_refused(operation: dict[str, Any], what: str) -> None:
    with pytest.raises(RenderError, match=what):
        render([FINE, operation])
