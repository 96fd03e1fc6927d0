"""From a YAML file to a `Cycle`, or to a list of everything that is wrong with it.

YAML is read as `kubectl` reads it (PyYAML alone would read `1e-4` as text, `12:30` as 750 and dates as dates). Not
ruamel.yaml: it reads YAML 1.2, in which `on` and `yes` are text; to kubectl they are booleans.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from . import API_GROUP, API_VERSION, KIND
from .cycle import Cycle
from .validation_errors import CycleError as CycleError
from .validation_errors import Location, dotted, explain
from .validation_errors import Problem as Problem

_API = f"{API_GROUP}/{API_VERSION}"
_DEEPEST = 64
_MOST_NODES = 100_000
_MOST_BYTES = 1 << 20
_KINDS = {"bool": "a boolean", "int": "a number", "float": "a number", "null": "nothing"}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of Kubernetes' own YAML library."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":int", ":float"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """As PyYAML, but JSON's `\\ud83d\\ude00` is one character."""
        text = super().construct_scalar(node)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if isinstance(text, str) else text


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"[-+]?(0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def load_cycle(path: Path | str) -> Cycle:
    """Reads a MedGR2Cycle from a YAML file. A `status` in it is ignored: it is the operator's.

    Raises:
        CycleError: the file cannot be read, or is no valid MedGR2Cycle.
    """
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            problem = Problem("", f"is larger than {_MOST_BYTES >> 20} MiB, more than an API server takes")
            raise CycleError([problem], str(path))
        text = data.decode("utf-8")
    except OSError as error:
        raise CycleError([Problem("", f"cannot be read: {error.strerror}")], str(path)) from error
    except UnicodeDecodeError as error:
        raise CycleError([Problem("", f"is not UTF-8 text (byte {error.start})")], str(path)) from error
    return parse_cycle(text, str(path))


def parse_cycle(text: str, where: str) -> Cycle:
    """Reads a MedGR2Cycle from YAML text.

    Args:
        text: one YAML document.
        where: what to call the text in messages: a file name.

    Raises:
        CycleError: with every problem that was found.
    """
    root = _compose(text, where)
    if _size(root, {}) > _MOST_NODES:
        raise CycleError([Problem("", "too large once its anchors are written out")], where)
    problems = list(_bad_keys(root))
    if problems:
        raise CycleError(problems, where)
    try:
        document = _Loader("").construct_document(root)
    except yaml.MarkedYAMLError as error:
        raise CycleError([_yaml_problem(error)], where) from error
    except ValueError as error:  # a number of thousands of digits
        raise CycleError([Problem("", f"holds a value that cannot be read: {error}")], where) from error
    _check_kind(document, root, where)
    document.pop("status", None)
    try:
        return Cycle.as_written(document)
    except ValidationError as error:
        found = explain(error, Cycle, lambda location: _raw(root, location))
        problems = [Problem(dotted(place), message, _line(root, place)) for place, message in found]
        raise CycleError(sorted(problems, key=lambda problem: problem.line or 0), where) from error


def locate(problems: list[Problem], text: str) -> list[Problem]:
    """The same problems with the lines of `text` that they are about. `text` must be valid YAML."""
    root = next(iter(yaml.compose_all(text, _Loader)))
    located = []
    for problem in problems:
        place = tuple(int(part) if part.isdigit() else part for part in re.split(r"[.\[\]]+", problem.path) if part)
        located.append(Problem(problem.path, problem.message, _line(root, place)))
    return located


def _compose(text: str, where: str) -> yaml.Node:
    try:
        roots = [node for node in yaml.compose_all(text, _Loader) if node is not None and node.value != ""]
    except yaml.MarkedYAMLError as error:
        raise CycleError([_yaml_problem(error)], where) from error
    except RecursionError as error:
        raise CycleError([Problem("", "nested too deeply")], where) from error
    except yaml.reader.ReaderError as error:
        problem = Problem("", f"holds a character that YAML forbids (number {error.position})")
        raise CycleError([problem], where) from error
    if len(roots) != 1:
        found = "is empty" if not roots else f"holds {len(roots)} YAML documents; one MedGR2Cycle is expected"
        raise CycleError([Problem("", found, roots[1].start_mark.line + 1 if roots else None)], where)
    return roots[0]


def _yaml_problem(error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    reason = error.problem or error.context or "cannot be read"
    if "'\\t'" in reason:
        reason = "a tab: YAML is indented with spaces"
    elif error.context:
        reason = f"{reason} ({error.context})"
    return Problem("", f"not valid YAML: {reason}", mark.line + 1 if mark else None)


def _check_kind(document: Any, root: yaml.Node, where: str) -> None:
    if not isinstance(document, dict):
        raise CycleError([Problem("", f"must be a {KIND} object ('name: value' lines)", 1)], where)
    problems = []
    for name, wanted in (("apiVersion", _API), ("kind", KIND)):
        if name not in document:
            problems.append(Problem(name, f"missing: write '{name}: {wanted}'"))
        elif document[name] != wanted:
            problems.append(Problem(name, f"is {document[name]!r}, must be {wanted!r}", _line(root, (name,))))
    if problems:
        raise CycleError(problems, where)


def _size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Number of nodes, those behind an alias counted each time."""
    if id(node) not in sizes:
        sizes[id(node)] = 1
        if isinstance(node, yaml.SequenceNode):
            sizes[id(node)] += sum(_size(item, sizes) for item in node.value)
        elif isinstance(node, yaml.MappingNode):
            sizes[id(node)] += sum(_size(value, sizes) for _, value in node.value)
    return sizes[id(node)]


def _bad_keys(node: yaml.Node, place: Location = (), above: tuple[int, ...] = ()) -> Iterator[Problem]:
    """Keys written twice, keys that are not text, anchors that hold themselves, and far too deep nesting."""
    line = node.start_mark.line + 1
    if id(node) in above:
        yield Problem(dotted(place), "an anchor that refers to itself", line)
    elif len(above) > _DEEPEST:
        yield Problem("", "nested too deeply", line)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _bad_keys(item, (*place, index), (*above, id(node)))
    elif isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            line, kind = key.start_mark.line + 1, key.tag.rpartition(":")[2]
            if kind not in ("str", "merge"):
                word = f"YAML reads it as {_KINDS[kind]}: put it in quotes" if kind in _KINDS else "a key must be text"
                yield Problem(dotted((*place, name)), f"not a name: {word}", line)
            elif name in first:
                yield Problem(dotted((*place, name)), f"is written twice, first on line {first[name]}", line)
            first.setdefault(name, line)
            yield from _bad_keys(value, (*place, name), (*above, id(node)))


def _find(root: yaml.Node, place: Location) -> tuple[yaml.Node, int]:
    """The node at a place, or the nearest above it, and its line (of the key, where it has one)."""
    node, line = root, root.start_mark.line + 1
    for part in place:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        elif isinstance(node, yaml.MappingNode):
            pair = next(((key, value) for key, value in node.value if key.value == part), None)
            if pair is None:
                break
            node, line = pair[1], pair[0].start_mark.line + 1
        else:
            break
    return node, line


def _line(root: yaml.Node, place: Location) -> int:
    return _find(root, place)[1]


def _raw(root: yaml.Node, place: Location) -> str | None:
    node = _find(root, place)[0]
    return str(node.value) if isinstance(node, yaml.ScalarNode) else None
