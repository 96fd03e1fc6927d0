"""Cycles as plain documents, for the tests of the contract."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from medgr2_api.cycle import Cycle, CycleSpec

HERE = Path(__file__).parent
Document = dict[str, Any]
MINIMAL_TEXT = (HERE / "minimal.yaml").read_text()


def changed(values: Mapping[str, Any]) -> Document:
    """The minimal cycle with values put at dotted paths."""
    document: Document = deepcopy(yaml.safe_load(MINIMAL_TEXT))
    for path, value in values.items():
        *parents, leaf = path.split(".")
        target = document
        for name in parents:
            target = target.setdefault(name, {})
        target[leaf] = deepcopy(value)
    return document


def spec_with(values: Mapping[str, Any] | None = None) -> CycleSpec:
    """The minimal spec with values put at dotted paths below `spec`."""
    return Cycle.model_validate(changed({f"spec.{path}": value for path, value in (values or {}).items()})).spec
