"""RFC 6902: the user's last word on a Job."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonpatch
import jsonpointer

from . import labels
from .errors import RenderError
from .render_context import Attempt

_OURS = (
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
#: By these the operator knows the Job and its pods again; whoever changed them would make it start a second one.
_IDENTITY: tuple[tuple[str, ...], ...] = (
    ("apiVersion",),
    ("kind",),
    ("metadata", "name"),
    ("metadata", "generateName"),
    ("metadata", "namespace"),
    ("metadata", "ownerReferences"),
    *(("metadata", "labels", label) for label in _OURS),
    *(("spec", "template", "metadata", "labels", label) for label in _OURS),
)


def patched(attempt: Attempt, job: dict[str, Any]) -> dict[str, Any]:
    """A copy of the Job with the patches of the template and then of the stage.

    Raises:
        RenderError: a patch does not apply, or changes by what the Job is known; the path names the patch.
    """
    document: Any = _plain(job)
    before = _identity(document)
    for path, operation in _operations(attempt):
        try:
            document = jsonpatch.apply_patch(document, [_plain(operation)], in_place=True)
        except (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException) as error:
            raise RenderError(path, f"does not apply: {_short(error)}") from None
        after = _identity(document)
        changed = [place for place in _IDENTITY if after[place] != before[place]]
        if changed:
            raise RenderError(path, f"must not change {'.'.join(changed[0])}: the operator knows the Job by it")
    assert isinstance(document, dict)
    return document


def _plain(value: dict[str, Any]) -> Any:
    """A copy in which no two places share an object: a patch of one must not reach the other, nor the cycle's spec."""
    return json.loads(json.dumps(value))


def _operations(attempt: Attempt) -> Iterator[tuple[str, dict[str, Any]]]:
    """The operations in order. A stage's are about the pods that do its work, so collecting leaves them out."""
    for index, operation in enumerate(attempt.template.patches):
        yield f"spec.template.patches[{index}]", operation
    for index, operation in enumerate([] if attempt.collects else attempt.stage.patches):
        yield f"{attempt.path}.patches[{index}]", operation


def _identity(document: Any) -> dict[tuple[str, ...], Any]:
    """What stands at each place of `_IDENTITY`, written out: a patch works on the document in place."""
    return {place: json.dumps(_at(document, place), sort_keys=True) for place in _IDENTITY}


def _at(document: Any, place: tuple[str, ...]) -> Any:
    for key in place:
        document = document.get(key) if isinstance(document, dict) else None
    return document


def _short(error: Exception) -> str:
    """The library's message without the document that it quotes."""
    return str(error).split(" in {")[0].splitlines()[0][:200]
