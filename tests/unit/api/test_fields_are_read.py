"""No field of the spec is a promise that nobody keeps: code beyond the contract's models reads each of them.

By name only: a field that nobody reads is not found while another one of the same name is read.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest

from medgr2_api.cycle import CycleSpec
from medgr2_api.generator import GENERATORS
from medgr2_api.model import Model

ROOT = Path(__file__).parents[3]
#: Where a field counts as read; not in the models themselves, whose rules look at fields that may do nothing else.
READERS = (
    "operator",
    "jobs",
    "crds/medgr2_api/stages",
    "crds/medgr2_api/presets.py",
    "crds/medgr2_api/unsupported.py",
    "crds/medgr2_api/grpo_batches.py",
    "crds/medgr2_api/rollout_gpus.py",
    "crds/medgr2_api/rollout_rules.py",
)


@cache
def _read() -> frozenset[str]:
    """Names of attributes that are read, and texts: some fields are looked up by their names."""
    found = set(GENERATORS)  # kinds are looked up in this table
    for reader in READERS:
        path = ROOT / reader
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    found.add(node.attr)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
    return frozenset(found)


def _fields(model: type[Model], path: str) -> Iterator[tuple[str, set[str]]]:
    for name, field in model.model_fields.items():
        here = f"{path}.{field.alias or name}"
        yield here, {name, field.alias or name}
        for inner in _models(field.annotation):
            yield from _fields(inner, here)


def _models(annotation: Any) -> Iterator[type[Model]]:
    if isinstance(annotation, type) and issubclass(annotation, Model):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


@pytest.mark.parametrize(("path", "names"), _fields(CycleSpec, "spec"))
def test_somebody_reads_it(path: str, names: set[str]) -> None:
    assert names & _read(), f"nothing reads {path}: act on it, or leave it out of the API"
