"""The shapes of the objects that a cycle holds fragments of, as the installed Kubernetes client knows them.

`python -m medgr2_operator.kube.shapes [--check]` writes them down for the contract, which has no client.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from kubernetes import client
from pydantic import BaseModel

import medgr2_api

PATH = Path(medgr2_api.__file__).parent / "kubernetes_shapes.json"
ROOTS = ("V1Job", "V1PersistentVolumeClaimTemplate")
#: Fields that the client has as text, or as maps of text, and that are quantities.
_QUANTITIES = ("limits", "requests", "overhead", "sizeLimit", "divisor")
#: The API server's own: nobody writes them.
_SERVERS = ("V1JobStatus", "[V1ManagedFieldsEntry]")


def shapes() -> dict[str, Any]:
    """By name of the client's model: each field's type, and which fields must be there."""
    found: dict[str, Any] = {}
    queue = list(ROOTS)
    for name_of_model in queue:
        if name_of_model in found:
            continue
        model, fields = getattr(client, name_of_model), {}
        required = []
        for name, field in sorted(model.model_fields.items()):
            wire = model.attribute_map[field.alias or name]
            kind = _kind(field.annotation, wire)
            if kind in _SERVERS:
                continue
            fields[wire] = kind
            queue += [word for word in [kind.strip("[{}]")] if hasattr(client, word)]
            if field.is_required():
                required.append(wire)
        found[name_of_model] = {"fields": fields, **({"required": required} if required else {})}
    return dict(sorted(found.items()))


def _kind(annotation: Any, field: str) -> str:
    """A type as text; `[T]` is a list of T, `{T}` a map to T; a model by its name."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(parts[0], field)
    if origin in (Union, types.UnionType):
        kinds = {_kind(part, field) for part in parts if part is not type(None)}
        return "integer or text" if kinds == {"integer", "text"} else kinds.pop() if len(kinds) == 1 else "anything"
    if origin is list:
        return f"[{_kind(parts[0], field)}]"
    if origin is dict:
        return f"{{{_kind(parts[1], field)}}}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.__name__
    plain = {str: "quantity" if field in _QUANTITIES else "text", int: "integer", bool: "true or false"}
    return plain.get(annotation, "anything")


def main(arguments: list[str]) -> int:
    """Writes the file, or with `--check` says whether it is up to date."""
    lines = (f"{json.dumps(name)}: {json.dumps(shape)}" for name, shape in shapes().items())
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    if "--check" not in arguments:
        PATH.write_text(text)
    elif not PATH.is_file() or PATH.read_text() != text:
        print(f"{PATH} is out of date: run python -m medgr2_operator.kube.shapes", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
