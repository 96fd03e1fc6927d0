"""The CRD: structural, within the API server's limits, described, and up to date."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import medgr2_api
from medgr2_api import crd
from medgr2_api.model import Model
from medgr2_api.presets import _DEFAULT, PRESETS

TYPES = {"object", "array", "string", "integer", "number", "boolean"}
FORMATS = {"integer": {"int32", "int64"}, "number": {"double"}, "string": {"date-time", None}}
Node = dict[str, Any]


def _nodes(node: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from _nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in node:
            yield from _nodes(node[key], f"{path}[]" if key == "items" else f"{path}{{}}")


@pytest.fixture(scope="module")
def nodes() -> dict[str, Node]:
    return dict(_nodes(crd.openapi()))


def test_every_node_is_structural(nodes: dict[str, Node]) -> None:
    for path, node in nodes.items():
        assert node.get("type") in TYPES, path
        assert not node.keys() & {"$ref", "anyOf", "allOf", "oneOf", "not", "nullable", "title", "const"}, path
        assert isinstance(node.get("additionalProperties", {}), dict), path
        assert not ("properties" in node and "additionalProperties" in node), path
        assert ("items" in node) == (node["type"] == "array"), path
        assert node.get("format") in FORMATS.get(node["type"], {None}), path
        assert isinstance(node.get("exclusiveMinimum", True), bool), path
        assert set(node.get("required", [])) <= set(node.get("properties", {})), path
        if node["type"] == "object" and path != ".metadata":
            assert node.keys() & {"properties", "additionalProperties", "x-kubernetes-preserve-unknown-fields"}, path


def test_metadata_is_left_to_the_api_server(nodes: dict[str, Node]) -> None:
    assert nodes[".metadata"] == {"type": "object"}
    assert nodes[""]["required"] == ["spec"]


def test_rules_have_messages_and_transition_rules_stand_on_the_spec(nodes: dict[str, Node]) -> None:
    rules = [(path, rule) for path, node in nodes.items() for rule in node.get("x-kubernetes-validations", [])]
    assert len(rules) > 20
    for path, rule in rules:
        assert rule.keys() == {"rule", "message"}, path
        assert 0 < len(rule["message"]) < 200, path
        assert "\n" not in rule["message"], path
    assert {path for path, rule in rules if "oldSelf" in rule["rule"]} == {".spec"}


def test_what_rules_look_at_is_bounded(nodes: dict[str, Node]) -> None:
    """The API server estimates the cost of a rule from the largest values that the schema allows."""
    for path, node in nodes.items():
        above = [path[:end] for end in range(1, len(path) + 1) if path[:end] in nodes]
        if "x-kubernetes-validations" in node:
            for parent in above:
                assert nodes[parent]["type"] != "array" or "maxItems" in nodes[parent], parent
            assert node["type"] != "string" or "maxLength" in node, path


@pytest.mark.parametrize(
    ("path", "kind", "keys"),
    [
        (".spec.stages", "map", ["name"]),
        (".spec.data.sources", "map", ["name"]),
        (".spec.data.benchmarks", "map", ["name"]),
        (".spec.pauseBefore", "set", None),
        (".status.stages", "map", ["iteration", "name"]),
        (".status.conditions", "map", ["type"]),
    ],
)
def test_list_types(path: str, kind: str, keys: list[str] | None, nodes: dict[str, Node]) -> None:
    assert nodes[path]["x-kubernetes-list-type"] == kind
    assert nodes[path].get("x-kubernetes-list-map-keys") == keys
    assert set(keys or []) <= set(nodes[f"{path}[]"].get("required", []))


def test_free_form_parts_are_kept_unread(nodes: dict[str, Node]) -> None:
    for path in ("policy.grpo.trainer", "workspace.volumeClaimTemplate", "template.patches[]", "stages[].resources"):
        assert nodes[f".spec.{path}"]["x-kubernetes-preserve-unknown-fields"] is True


def test_only_the_stored_defaults_are_defaults(nodes: dict[str, Node]) -> None:
    defaults = {path.removeprefix(".spec."): node["default"] for path, node in nodes.items() if "default" in node}
    assert defaults.pop(".status") == {"observedGeneration": -1}, "kstatus: nobody has looked at it"
    assert defaults == {"preset": "Default", "iterations": 3, "seed": 17}


def test_what_a_preset_owns_is_in_the_schema_and_has_no_default(nodes: dict[str, Node]) -> None:
    owned = {path for table in (_DEFAULT, *PRESETS.values()) for path in table}
    for path in owned:
        parts = path.split(".")
        for end in range(1, len(parts) + 1):
            assert "default" not in nodes[".spec." + ".".join(parts[:end])], path
    assert not {path.partition(".")[0] for path in owned} & set(crd.STORED_DEFAULTS)


def test_the_crd_names_the_resource() -> None:
    document = crd.crd()
    assert document["metadata"]["name"] == "medgr2cycles.medgr2.io"
    names = document["spec"]["names"]
    assert (names["kind"], names["shortNames"], names["categories"]) == ("MedGR2Cycle", ["mgc"], ["all"])
    (version,) = document["spec"]["versions"]
    assert version["subresources"] == {"status": {}}
    assert {"Phase", "Iteration", "Summary", "Age"} <= {
        column["name"] for column in version["additionalPrinterColumns"]
    }


def test_printer_columns_show_fields_that_exist(nodes: dict[str, Node]) -> None:
    for column in crd.crd()["spec"]["versions"][0]["additionalPrinterColumns"]:
        path = column["jsonPath"].partition("[")[0]
        assert path in nodes or path.startswith(".metadata.")


def test_the_file_is_up_to_date_and_small() -> None:
    text = crd.CRD_PATH.read_text()
    assert text == crd.render(), "run: python -m medgr2_api.crd"
    assert len(text.encode()) < 256 * 1024  # the API server's limit is 1 MiB, kubectl apply's annotation 256 KiB
    assert yaml.safe_load(text) == crd.crd()
    assert crd.main(["--check"]) == 0


def test_check_sees_drift(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stale = tmp_path / "crd.yaml"
    assert crd.main(["--check", "--output", str(stale)]) == 1
    assert "out of date" in capsys.readouterr().err
    assert crd.main(["--output", str(stale)]) == 0
    assert crd.main(["--check", "--output", str(stale)]) == 0


def _all_models(model: type[Model]) -> Iterator[type[Model]]:
    for child in model.__subclasses__():
        if child.__module__.startswith("medgr2_api."):
            yield child
            yield from _all_models(child)


def test_every_field_is_described() -> None:
    for module in pkgutil.iter_modules(medgr2_api.__path__):
        importlib.import_module(f"medgr2_api.{module.name}")
    models = list(_all_models(Model))
    assert len(models) > 50
    for model in models:
        assert model.__doc__, model
        for name in model.model_fields:
            # a narrowed field means what the wider one does
            known = [base.model_fields[name] for base in model.__mro__ if name in getattr(base, "model_fields", {})]
            description = next((field.description for field in known if field.description), "")
            assert len(description) >= 10, f"{model.__name__}.{name}: {description!r}"
            assert description.endswith("."), f"{model.__name__}.{name}: {description!r}"


def test_every_node_of_the_crd_is_described(nodes: dict[str, Node]) -> None:
    undescribed = [path for path, node in nodes.items() if "description" not in node]
    assert [path for path in undescribed if not path.endswith(("[]", "{}")) and path != ".metadata"] == []
