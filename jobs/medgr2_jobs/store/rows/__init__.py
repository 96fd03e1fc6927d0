"""What flows between the stages: one frozen dataclass per table; its parquet schema is made from it (`tables.py`).

A value is written once. What belongs to a candidate is keyed by its `triplet_id`: `Score`, `Decision`. The training set
and the lineage are joins of these, made when they are read. A field is a column of the same name, in this order;
`| None` is a column that may be null.

A table whose columns change gets a new VERSION; readers refuse one that they do not know. The tables are in the modules
beside this one, by what they are about.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, Protocol


class Split(StrEnum):
    """What a row may be used for."""

    TRAIN = "train"
    VALIDATION = "validation"
    """Every choice reads this split (thresholds, promotion, early stopping)."""
    TEST = "test"
    """A benchmark's: reported, never used to choose."""
    HELDOUT = "heldout"
    """Of graded rows and preferences: what R is judged on, never trained on; made from validation items."""


class Question(Protocol):
    """What every question carries, from the seed to the predictions."""

    @property
    def image_sha256(self) -> str: ...

    @property
    def modality(self) -> str: ...

    @property
    def question_type(self) -> str: ...

    @property
    def question(self) -> str: ...

    @property
    def options(self) -> tuple[str, ...]: ...


class AnsweredQuestion(Question, Protocol):
    """A question of which an answer is known, or believed."""

    @property
    def answer_index(self) -> int: ...


class StoredRow:
    """Base of all that is read from tables."""

    __slots__ = ()

    TABLE: ClassVar[str]
    """Name of the table: the file is `<TABLE>.parquet`."""
    VERSION: ClassVar[int]


class TableRow(StoredRow):
    """Base of all rows: a field per column of the table."""

    __slots__ = ()


class TableView(StoredRow):
    """Base of rows with some columns of a table, in its order. Only these are read; a view is never written."""

    __slots__ = ()
