"""Cycles as plain documents."""

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


def tiny_cycle(name: str = "loop", **spec: Any) -> Document:
    """A cycle of one iteration over drawn images, with the scripted generator in two shards, tiny models, and retries
    that do not wait; `spec` replaces fields of the spec by wire name."""
    phantoms = {"format": "Phantom", "phantom": {"images": 4}}
    return {
        "apiVersion": "medgr2.io/v1alpha1",
        "kind": "MedGR2Cycle",
        "metadata": {"name": name},
        "spec": {
            "preset": "Tiny",
            "iterations": 1,
            "workspace": {"persistentVolumeClaim": {"claimName": "x"}},
            "data": {"sources": [{"name": "seed", **phantoms}], "benchmarks": [{"name": "test", **phantoms}]},
            "generator": {"scripted": {}},
            "rewardModel": {"baseModel": "builtin://tiny-qwen2.5-vl"},
            "policy": {"baseModel": "builtin://tiny-qwen2.5-vl"},
            "failurePolicy": {"backoffSeconds": 0.01, "maxBackoffSeconds": 0.02},
            "stages": [{"name": "generate", "shards": 2}],
            **spec,
        },
    }
