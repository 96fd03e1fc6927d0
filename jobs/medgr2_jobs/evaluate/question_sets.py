"""On which questions checkpoints are measured: validation, and each benchmark."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import DataError
from ..store.rows import Split
from ..store.rows.prepared import Item
from .metrics import QuestionSet


def question_sets(items: Sequence[Item]) -> dict[QuestionSet, list[Item]]:
    """Validation's questions first, then each benchmark's in the order of the table.

    Raises:
        DataError: prepare made neither.
    """
    sets: dict[QuestionSet, list[Item]] = {}
    for split in (Split.VALIDATION, Split.TEST):
        for item in items:
            if item.split is split:
                benchmark = (item.benchmark or item.source) if split is Split.TEST else ""
                sets.setdefault(QuestionSet(split, benchmark), []).append(item)
    if not sets:
        raise DataError(
            "nothing to measure on: prepare made neither validation nor test questions; "
            "set data.split.validationFraction above 0 or name a benchmark"
        )
    return sets
