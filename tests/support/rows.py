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
    """A row with these values (enums by value, tuples as lists, too); of what is not said, null where it may be null,
    else what says nothing."""
    hints = typing.get_type_hints(kind)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    unknown = values.keys() - set(names)
    if unknown:
        raise KeyError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}")
    return kind(
        **{name: _value(hints[name], values[name]) if name in values else _nothing(hints[name]) for name in names}
    )


def _value(hint: Any, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return hint(value) if isinstance(hint, type) and issubclass(hint, StrEnum) else value


def _nothing(hint: Any) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return None
    if typing.get_origin(hint) is tuple:
        return ()
    return next(iter(hint)) if issubclass(hint, StrEnum) else hint()
