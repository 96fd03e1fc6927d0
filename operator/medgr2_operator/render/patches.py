"""The user's RFC 6902 patches of a Job."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonpatch
import jsonpointer

from medgr2_api.kubernetes_fragments import shape_problems
from medgr2_api.types import levels_exceed

from . import egress, labels
from .render_context import RenderContext, RenderError

_LABELS = (
    labels.NAME,
    labels.MANAGED_BY,
    labels.COMPONENT,
    labels.CYCLE,
    labels.CYCLE_UID,
    labels.ITERATION,
    labels.STAGE,
    labels.TOKEN,
    labels.ATTEMPT,
)
#: By these the operator identifies the Job and its pods (a patch of them would make it start a second one), and network
#: policies know where the pods may connect to.
_IDENTITY: tuple[tuple[str, ...], ...] = (
    ("apiVersion",),
    ("kind",),
    ("metadata", "name"),
    ("metadata", "generateName"),
    ("metadata", "namespace"),
    ("metadata", "ownerReferences"),
    *(("metadata", "labels", label) for label in _LABELS),
    *(("spec", "template", "metadata", "labels", label) for label in (*_LABELS, egress.LABEL)),
)
#: Of a Job's spec what is the user's. All else says how many pods there are, what a failure ends, who starts the Job
#: and how long it is kept: attempts, shards and GPU hours are counted by it; a failed pod is the planner's to replace.
_USERS_OWN = "template"

#: Bytes that a Job and its patches have together, what they copy or move counted each time; a plain Job has ten
#: thousand. `copy` could double them with every operation, and each costs as much as it touches.
LARGEST = 256 * 1024
#: Parts of a pointer, and levels of what is put there: a plain Job has ten. Who walks through a Job takes the square of
#: its levels, which `copy` could double, too.
DEEPEST = 64

#: The library's own errors, and those of Python that it lets through where a pointer or an operation is odd.
_NOT_APPLICABLE = (
    jsonpatch.JsonPatchException,
    jsonpointer.JsonPointerException,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)


def patched(context: RenderContext, job: dict[str, Any]) -> dict[str, Any]:
    """A copy of the Job with the patches of the template and then of the stage.

    Raises:
        RenderError: a patch does not apply, makes the Job too large or too deep, changes its identity or what its pods
            are counted by, or what comes out is no Job any more; the path names the patch.
    """
    text = json.dumps(job)
    document: Any = json.loads(text)
    before, counted, path, size = _identity(document), _counting(document), "", len(text)
    for path, operation in _operations(context):
        try:
            size += _size(document, operation)
            if size > LARGEST:
                raise _TooLargeError
            document = jsonpatch.apply_patch(document, [_plain(operation)], in_place=True)
        except _NOT_APPLICABLE as error:
            raise RenderError(path, f"does not apply: {_short(error)}") from None
        except _TooLargeError:
            most = f"{LARGEST // 1024} KiB, what it copies and moves counted"
            raise RenderError(path, f"makes the Job larger than {most}") from None
        except _TooDeepError:
            raise RenderError(path, f"nests the Job more than {DEEPEST} levels deep") from None
        after = _identity(document)
        changed = [place for place in _IDENTITY if after[place] != before[place]]
        if changed:
            raise RenderError(path, f"must not change {'.'.join(changed[0])}: the Job is known by it")
        counting = _counting(document)
        if counting != counted:
            field = next(name for name in (*counted, *counting) if counting.get(name) != counted.get(name))
            raise RenderError(path, f"must not change spec.{field}: the operator counts pods, attempts and time by it")
    # what no patch has touched was made of fragments that have been looked at
    if path and (problems := list(_problems(document))):
        raise RenderError(path, f"of the patched Job, {'; '.join(problems[:3])}")
    assert isinstance(document, dict)
    return document


class _TooLargeError(Exception):
    """The operations bring, copy and move too much."""


class _TooDeepError(Exception):
    """An operation reaches or puts something deeper than anything of a Job."""


def _size(document: Any, operation: dict[str, Any]) -> int:
    """Bytes of what an operation brings, copies or moves.

    Raises:
        _TooDeepError: it is nested too deeply, or is to be put too deeply.
        JsonPointerException: its `from` is no pointer to what is there.
    """
    size = len(json.dumps(operation))
    for name in ("path", "from"):
        if str(operation.get(name, "")).count("/") > DEEPEST:
            raise _TooDeepError
    if operation.get("op") in ("copy", "move") and isinstance(operation.get("from"), str):
        taken = jsonpointer.resolve_pointer(document, operation["from"])
        if isinstance(taken, jsonpointer.EndOfList):  # the library would put this object of its own into the Job
            raise jsonpointer.JsonPointerException("'-' is the end of a list, where nothing stands")
        if levels_exceed(taken, DEEPEST):
            raise _TooDeepError
        size += len(json.dumps(taken))
    return size


def _problems(job: Any) -> Iterator[str]:
    """What makes the document no Job."""
    yield from shape_problems(job, "V1Job")
    if _at(job, ("spec", "template", "spec")) is None:  # Kubernetes' shapes leave it open
        yield "spec.template.spec: missing"


def _plain(value: dict[str, Any]) -> Any:
    """A copy in which no two places share an object: a patch of one must not reach the other, nor the cycle's spec."""
    return json.loads(json.dumps(value))


def _operations(context: RenderContext) -> Iterator[tuple[str, dict[str, Any]]]:
    """The operations in order. A stage's are about the pods that do its work, so collecting leaves them out."""
    for index, operation in enumerate(context.template.patches):
        yield f"spec.template.patches[{index}]", operation
    for index, operation in enumerate([] if context.collects else context.stage.patches):
        yield f"{context.path}.patches[{index}]", operation


def _identity(document: Any) -> dict[tuple[str, ...], Any]:
    """What stands at each place of `_IDENTITY`, written out: a patch works on the document in place."""
    return {place: json.dumps(_at(document, place), sort_keys=True) for place in _IDENTITY}


def _counting(document: Any) -> dict[str, str]:
    """The fields of the Job's spec that are not the user's, written out."""
    spec = _at(document, ("spec",))
    fields = spec.items() if isinstance(spec, dict) else ()
    return {name: json.dumps(value, sort_keys=True) for name, value in fields if name != _USERS_OWN}


def _at(document: Any, place: tuple[str, ...]) -> Any:
    for key in place:
        document = document.get(key) if isinstance(document, dict) else None
    return document


def _short(error: Exception) -> str:
    """The library's message without the document that it quotes."""
    lines = str(error).split(" in {")[0].splitlines()
    return lines[0][:200] if lines else type(error).__name__
