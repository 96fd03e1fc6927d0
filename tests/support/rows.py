"""Rows of tables for tests that care for some of their fields only."""

from __future__ import annotations

import types
import typing
from dataclasses import fields
from enum import StrEnum
from typing import Any, TypeVar

from medgr2_jobs.store.rows import TableRow

R = TypeVar("R", bound=TableRow)


def row_of(kind: type[R], **values: Any) -> R:
    """A row with these values; of what is not said, null where it may be null, else what says nothing."""
    hints = typing.get_type_hints(kind)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    unknown = values.keys() - set(names)
    if unknown:
        raise KeyError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}")
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return kind(**{name: given[name] if name in given else _nothing(hints[name]) for name in names})


def _nothing(hint: Any) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return None
    if typing.get_origin(hint) is tuple:
        return ()
    return next(iter(hint)) if issubclass(hint, StrEnum) else hint()
