"""kubeconform with the schemas of the test cluster's own API server: Kubernetes' and those of every CRD it serves."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import tools
from tests.cluster.control_plane import ControlPlane

Document = dict[str, Any]
_NUMBER_OR_TEXT = {"type": ["string", "integer", "number"]}
#: What the API server reads from text and from numbers, and calls text.
_EITHER = ("io.k8s.apimachinery.pkg.util.intstr.IntOrString", "io.k8s.apimachinery.pkg.api.resource.Quantity")


class Schemas:
    """JSON schemas in a folder, in which unknown fields are errors."""

    def __init__(self, control_plane: ControlPlane, folder: Path) -> None:
        served = json.loads(control_plane.kubectl("get", "--raw", "/openapi/v2"))
        definitions = {
            name: _NUMBER_OR_TEXT if name in _EITHER else _strict(schema)
            for name, schema in served["definitions"].items()
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "all.json").write_text(json.dumps({"definitions": definitions}))
        for name, schema in served["definitions"].items():
            for kind in _kinds(schema):
                (folder / kind).write_text(json.dumps({"$ref": f"all.json#/definitions/{name}"}))
        self._location = f"{folder}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"

    def problems(self, documents: Sequence[Document]) -> list[str]:
        """What is wrong with the documents, in kubeconform's words; a kind without a schema is wrong, too."""
        kubeconform = tools.ensure(["kubeconform"])["kubeconform"]
        done = subprocess.run(
            [kubeconform, "-strict", "-output=json", "-schema-location", self._location],
            input=yaml.safe_dump_all(documents),
            capture_output=True,
            text=True,
            check=False,
        )
        answer = json.loads(done.stdout)
        return [f"{resource['kind']} {resource['name']}: {resource['msg']}" for resource in answer["resources"]]


def _kinds(schema: Document) -> Iterator[str]:
    """The names under which kubeconform looks for the schema of a kind."""
    for kind in schema.get("x-kubernetes-group-version-kind", []):
        group = f"-{kind['group'].split('.')[0]}" if kind["group"] else ""
        yield f"{kind['kind']}{group}-{kind['version']}.json".lower()


def _strict(schema: Any) -> Any:
    """The schema with nothing allowed that it does not name."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return _NUMBER_OR_TEXT
    schema = {
        # a property may have any name; "$ref" is within this file
        key: {name: _strict(item) for name, item in value.items()} if key == "properties" else _strict(value)
        for key, value in schema.items()
    }
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    return schema
