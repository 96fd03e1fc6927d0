"""Fragments of Kubernetes objects in a cycle, checked against Kubernetes' own shapes.

The shapes are the Kubernetes client's (`kubernetes_shapes.json`, made by `make crds`). What they do not
say and the API server refuses all the same stands here: quantities, words of enumerations, labels, devices in parts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

from .cel_rules import Rule
from .types import LITERAL_KEY, NO_KEY_MESSAGE, cel_text, harmless

_SHAPES_FILE = Path(__file__).with_name("kubernetes_shapes.json")
_QUANTITY = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:([eE][+-]?[0-9]{1,2})|(m|u|n|k|[MGTPE]|[KMGTPE]i))?")
_SCALES = {
    **{
        unit: Decimal(1000) ** power for power, unit in enumerate(("n", "u", "m", "", "k", "M", "G", "T", "P", "E"), -3)
    },
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", 1)},
}
_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_DNS_NAME = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
_QUALIFIED_NAME = re.compile(f"({_DNS_NAME}/)?{_NAME}")
_LABEL_VALUE = re.compile(f"({_NAME})?")
_SECRET_NAME = r"(?i)(key|token|secret|password|passwd)$"
_SHOWN = 60

#: Words of enumerations that a cycle's fragments hold: the client has them as plain text.
_WORDS: dict[tuple[str, str], tuple[str, ...]] = {
    ("V1Toleration", "operator"): ("Exists", "Equal", "Lt", "Gt"),
    ("V1Toleration", "effect"): ("NoSchedule", "PreferNoSchedule", "NoExecute"),
    ("V1NodeSelectorRequirement", "operator"): ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"),
    ("V1LabelSelectorRequirement", "operator"): ("In", "NotIn", "Exists", "DoesNotExist"),
    ("V1SeccompProfile", "type"): ("RuntimeDefault", "Unconfined", "Localhost"),
    ("V1PodSecurityContext", "fsGroupChangePolicy"): ("OnRootMismatch", "Always"),
}


def quantity(value: Any) -> Decimal | None:
    """A quantity such as 2, "500m" or "1.5Gi" as a number; None: it is none."""
    if not isinstance(value, str | float) and not _is_integer(value):
        return None
    found = _QUANTITY.fullmatch(str(value))
    if found is None or len(found[1]) > 32:
        return None
    return Decimal(found[1] + (found[2] or "")) * _SCALES[found[3] or ""]


def is_extended(resource: str) -> bool:
    """Whether a resource is of a device plugin: counted in whole devices."""
    return "/" in resource and not resource.split("/")[0].endswith("kubernetes.io")


def shape_problems(value: Any, kind: str, path: str = "") -> Iterator[str]:
    """What is wrong with the shape of a value, each as `path: message`.

    Args:
        value: JSON.
        kind: the client's name of the model, or a type as the file of shapes has it.
        path: where the value stands.
    """
    if value is None or kind == "anything":  # null is how JSON says that a field is absent
        return
    if kind[0] in "[{":
        yield from _items(value, kind, path)
    elif kind in _PLAIN:
        wanted, fits = _PLAIN[kind]
        if not fits(value):
            yield _problem(path, f"{_shown(value)} is not {wanted}")
    elif not isinstance(value, dict):
        yield _problem(path, f"must be an object ('name: value' lines), not {_shown(value)}")
    else:
        yield from _fields(value, kind, path)


def _items(value: Any, kind: str, path: str) -> Iterator[str]:
    inner: Iterator[tuple[Any, Any]]
    if kind[0] == "[" and isinstance(value, list):
        form, inner = "{}[{}]", iter(enumerate(value))
    elif kind[0] == "{" and isinstance(value, dict):
        form, inner = "{}.{}", iter(value.items())
    else:
        wanted = "a list ('- item' lines)" if kind[0] == "[" else "an object ('name: value' lines)"
        yield _problem(path, f"must be {wanted}, not {_shown(value)}")
        return
    _, fits = _PLAIN.get(kind[1:-1], ("", lambda _: False))
    for key, item in inner:
        if fits(item):  # there may be tens of thousands, and no path is needed for what is right
            continue
        place = form.format(path, _word(key))
        if item is None:
            yield _problem(place, "must not be empty")
        else:
            yield from shape_problems(item, kind[1:-1], place)


def _fields(value: dict[str, Any], kind: str, path: str) -> Iterator[str]:
    shape = _shapes()[kind]
    for name, item in value.items():
        place = f"{path}.{_word(name)}"
        if name not in shape["fields"]:
            yield _problem(place, f"unknown field; known here are {', '.join(shape['fields'])}")
        else:
            yield from shape_problems(item, shape["fields"][name], place)
            words = _WORDS.get((kind, name))
            if words and isinstance(item, str) and item and item not in words:
                yield _problem(place, f"{_shown(item)} is not one of {', '.join(words)}")
    for name in shape.get("required", ()):
        if value.get(name) is None:
            yield _problem(f"{path}.{name}", "missing")


@cache
def _shapes() -> dict[str, Any]:
    shapes: dict[str, Any] = json.loads(_SHAPES_FILE.read_text(encoding="utf-8"))
    return shapes


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


_PLAIN: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "text": ("text: put it in quotes", lambda value: isinstance(value, str)),
    "integer": ("an integer", _is_integer),
    "true or false": ("true or false", lambda value: isinstance(value, bool)),
    "integer or text": ("a number or text", lambda value: isinstance(value, str) or _is_integer(value)),
    "quantity": ("a quantity, such as 2, 500m or 1.5Gi", lambda value: quantity(value) is not None),
}


def _problem(path: str, message: str) -> str:
    place = path.lstrip(".")
    return f"{place}: {message}" if place else message


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value) if not isinstance(value, int) or abs(value) < 2**63 else "a number that is too large"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _word(key: Any) -> str:
    return str(key)[:_SHOWN]


# -- what the shapes do not say ----------------------------------------------------------------------------------------


def _resource_problems(resources: dict[str, Any]) -> Iterator[str]:
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for part, amounts in (("limits", limits), ("requests", requests)):
        for name, written in amounts.items():
            amount = quantity(written)
            if amount is None:
                continue  # its shape is wrong
            if _QUALIFIED_NAME.fullmatch(name) is None:
                yield f"{part}.{_word(name)}: is not the name of a resource, such as memory or nvidia.com/gpu"
            elif amount < 0:
                yield f"{part}.{name}: {_shown(written)} must not be negative"
            elif is_extended(name) and amount != amount.to_integral_value():
                yield f"{part}.{name}: {_shown(written)} is not a whole number of devices"
    for name, written in requests.items():
        amount, most = quantity(written), quantity(limits.get(name))
        if amount is not None and most is not None and (amount > most or (is_extended(name) and amount != most)):
            wanted = "equal to" if is_extended(name) else "at most"
            yield f"requests.{name}: {_shown(written)} must be {wanted} the limit, {_shown(limits[name])}"


def _variable_problems(variable: dict[str, Any]) -> Iterator[str]:
    if not isinstance(variable.get("name"), str) or not variable["name"]:
        yield "a variable needs a name"
    elif "=" in variable["name"]:
        yield f"{_shown(variable['name'])}: a variable's name has no '='"
    elif not isinstance(variable.get("value", ""), str):
        yield f"the value of {_word(variable['name'])} must be text: put it in quotes"
    elif variable.get("value") and variable.get("valueFrom"):
        yield f"{_word(variable['name'])}: has value and valueFrom: remove one of them"


def _toleration_problems(toleration: dict[str, Any]) -> Iterator[str]:
    if not toleration.get("key") and toleration.get("operator", "Equal") != "Exists":
        yield "key: without a key the operator must be Exists"


def label_problems(labels: dict[str, str]) -> Iterator[str]:
    """What is wrong with keys and values of labels."""
    for key, value in labels.items():
        yield from _key_problems(key)
        if _LABEL_VALUE.fullmatch(value) is None:
            yield (
                f"{_word(key)}: {_shown(value)} is no label's value: at most 63 letters, digits, '-', '_' and '.',"
                " both ends a letter or digit"
            )


def _key_problems(key: str) -> Iterator[str]:
    if _QUALIFIED_NAME.fullmatch(key) is None:
        yield f"{_shown(key)} is no key of a label or annotation, such as team or example.com/team"


def _annotation_problems(annotations: dict[str, str]) -> Iterator[str]:
    for key in annotations:
        yield from _key_problems(key)


# -- types -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Check:
    """Refuses what one of its checks finds wrong, all of it in one message."""

    kind: str
    further: Callable[[dict[str, Any]], Iterator[str]] = lambda value: iter(())
    """Looks at what has the right shape."""
    first: Callable[[dict[str, Any]], Iterator[str]] = lambda value: iter(())
    """Says it better than the shape does."""

    def __call__(self, value: dict[str, Any]) -> dict[str, Any]:
        harmless(value)
        problems = [*self.first(value)] or [*shape_problems(value, self.kind)] or [*self.further(value)]
        if problems:
            raise ValueError("; ".join(problems[:5]))
        return value


def _without_nulls(value: Any) -> Any:
    """Null is how YAML says that a field is left out (`limits:` with nothing below)."""
    return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value


_ANY_OBJECT: dict[str, Any] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


def _no_secret_value(variable: dict[str, Any]) -> bool:
    return not variable.get("value") or re.search(_SECRET_NAME, str(variable.get("name", ""))) is None


Affinity = Annotated[dict[str, Any], AfterValidator(_Check("V1Affinity")), WithJsonSchema(_ANY_OBJECT)]
Toleration = Annotated[
    dict[str, Any], AfterValidator(_Check("V1Toleration", _toleration_problems)), WithJsonSchema(_ANY_OBJECT)
]
LocalObjectReference = Annotated[
    dict[str, Any], AfterValidator(_Check("V1LocalObjectReference")), WithJsonSchema(_ANY_OBJECT)
]
EnvFromSource = Annotated[dict[str, Any], AfterValidator(_Check("V1EnvFromSource")), WithJsonSchema(_ANY_OBJECT)]
PodSecurityContext = Annotated[
    dict[str, Any], AfterValidator(_Check("V1PodSecurityContext")), WithJsonSchema(_ANY_OBJECT)
]
ResourceRequirements = Annotated[
    dict[str, Any],
    BeforeValidator(_without_nulls),
    AfterValidator(_Check("V1ResourceRequirements", _resource_problems)),
    WithJsonSchema(_ANY_OBJECT),
]
VolumeClaimTemplate = Annotated[
    dict[str, Any], AfterValidator(_Check("V1PersistentVolumeClaimTemplate")), WithJsonSchema(_ANY_OBJECT)
]
Labels = Annotated[dict[str, str], AfterValidator(_Check("{text}", label_problems))]
Annotations = Annotated[dict[str, str], AfterValidator(_Check("{text}", _annotation_problems))]
EnvVar = Annotated[
    dict[str, Any],
    AfterValidator(_Check("V1EnvVar", first=_variable_problems)),
    WithJsonSchema(
        {
            **_ANY_OBJECT,
            "properties": {
                "name": {"type": "string", "minLength": 1, "maxLength": 256, "description": "Name of the variable."},
                "value": {"type": "string", "maxLength": 8192, "description": "Its value, when it is no secret."},
            },
            "required": ["name"],
        }
    ),
    Rule(
        f"!has(self.value) || self.value == '' || !self.name.matches({cel_text(_SECRET_NAME)})",
        "must not hold a secret in 'value': use valueFrom.secretKeyRef",
        _no_secret_value,
    ),
    Rule(f"!has(self.value) || !self.value.matches({cel_text(LITERAL_KEY)})", NO_KEY_MESSAGE),
]
"""A container's environment variable; what is secret comes from a Secret."""
Operation = Annotated[dict[str, Any], AfterValidator(harmless), WithJsonSchema(_ANY_OBJECT)]
"""An RFC 6902 operation; rendering says whether it applies."""
