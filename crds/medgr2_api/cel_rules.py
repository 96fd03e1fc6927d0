"""Rules of the API, told twice: in CEL for the API server, and in Python for the command line and the jobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

VALIDATIONS = "x-kubernetes-validations"


@dataclass(frozen=True)
class Rule:
    """One rule. Stands in a model's `rules`, or annotates a type."""

    cel: str
    message: str
    check: Callable[[Any], bool] | None = None
    """The same in Python. None: a transition rule (only the API server sees the old object), or a validator beside the
    rule checks it."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def enforce(value: Any) -> Any:
            self.enforce(value)
            return value

        return core_schema.no_info_after_validator_function(enforce, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        return {**schema, VALIDATIONS: [*schema.get(VALIDATIONS, []), self.document()]}

    def enforce(self, value: Any) -> None:
        """Raises ValueError with the rule's message when `value` breaks it."""
        if self.check is not None and not self.check(value):
            raise ValueError(self.message)

    def document(self) -> dict[str, str]:
        """The rule as an entry of `x-kubernetes-validations`."""
        return {"rule": self.cel, "message": self.message}


@dataclass(frozen=True)
class Keyed:
    """Annotates a list whose items must differ: in these fields (listType map), or as a whole (listType set)."""

    keys: tuple[str, ...] = ()

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._unique, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        kind = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(self.keys)}
        return {**handler(core), **(kind if self.keys else {"x-kubernetes-list-type": "set"})}

    def _unique(self, items: list[Any]) -> list[Any]:
        names = [tuple(str(getattr(item, key)) for key in self.keys) if self.keys else (str(item),) for item in items]
        twice = sorted({" ".join(name) for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"listed twice: {', '.join(twice)}")
        return items
