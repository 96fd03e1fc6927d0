"""What every API model shares: camelCase on the wire, and unknown fields refused."""

from __future__ import annotations

import types
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, ClassVar, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from .cel_rules import Rule
from .hashing import Since

#: As the `context` of a validation: the document is of an earlier version, which lacks fields that came `Since`.
EARLIER = {"version": "earlier"}


class Model(BaseModel):
    """Base of every API model. Attribute docstrings become the field descriptions that `kubectl explain` shows."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,  # what is refused may be an API key in the wrong place
    )

    rules: ClassVar[tuple[Rule, ...]] = ()
    """Rules about this object as a whole (`x-kubernetes-validations`)."""

    @model_validator(mode="before")
    @classmethod
    def _what_earlier_versions_did(cls, document: Any, info: ValidationInfo) -> Any:
        if info.context is not EARLIER or not isinstance(document, dict):
            return document
        since = {
            field.alias or name: note.value
            for name, field in cls.model_fields.items()
            for note in field.metadata
            if isinstance(note, Since)
        }
        return since | document

    @field_validator("*", mode="before")
    @classmethod
    def _boolean_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and info.field_name and _takes_numbers(cls, info.field_name):
            raise PydanticCustomError("not_a_boolean", "must be a number, not true or false")
        return value

    @model_validator(mode="after")
    def _keeps_rules(self) -> Self:
        for rule in self.rules:
            rule.enforce(self)
        return self

    def dump(self) -> dict[str, Any]:
        """The JSON form with wire names; unset optional fields are left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class ApiEnum(StrEnum):
    """An enum whose values are the API's PascalCase words."""


@cache
def _takes_numbers(model: type[BaseModel], field: str) -> bool:
    """Whether a field takes numbers and no booleans."""
    kinds = _kinds(model.model_fields[field].annotation)
    return bool(kinds & {int, float}) and bool not in kinds


def _kinds(annotation: Any) -> set[Any]:
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return {kind for part in get_args(annotation) for kind in _kinds(part)}
    return {annotation}
