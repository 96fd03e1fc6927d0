"""What follows from a spec alone (resolved parameters, graph), computed once per spec."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from medgr2_api.cycle import CycleSpec
from medgr2_api.presets import resolve
from medgr2_api.stages import StageParameters, input_hash, stage_parameters

from .graph import Graph, Shape, build

#: Fields that steer a run without changing what its stages are.
_STEERING = {"suspend", "approved", "pause_before", "restart_from", "iterations", "max_parallel_stages", "budget"}


@dataclass(frozen=True)
class Resolved:
    """A spec's graph and its stages' parameters. The functions behind it are pure, so remembering them is too."""

    cycle: str
    text: str

    def graph(self, iterations: int) -> Graph:
        """The stage graph over `iterations` iterations."""
        return build(_shape(self.text), iterations)

    def parameters(self, stage: str, iteration: int) -> dict[str, Any]:
        """A stage's parameters as JSON; the caller's own copy."""
        written: dict[str, Any] = json.loads(_parameters(self.text, self.cycle, stage, iteration)[1])
        return written

    def input_hash(self, stage: str, iteration: int, inputs: dict[str, str], token: str) -> str:
        """Where a stage publishes."""
        return _input_hash(self.text, self.cycle, stage, iteration, tuple(inputs.items()), token)


def resolved(cycle: str, spec: CycleSpec) -> Resolved:
    """The resolved form of a spec."""
    return Resolved(cycle, spec.model_dump_json(by_alias=True, exclude=_STEERING))


# What each look at a cycle asks for is small and remembered for many; the rest is needed when a stage starts.


@lru_cache(maxsize=1024)
def _shape(text: str) -> Shape:
    return Shape.of(_spec(text))


@lru_cache(maxsize=16)
def _spec(text: str) -> CycleSpec:
    return resolve(CycleSpec.model_validate_json(text))


@lru_cache(maxsize=256)
def _input_hash(
    text: str, cycle: str, stage: str, iteration: int, inputs: tuple[tuple[str, str], ...], token: str
) -> str:
    return input_hash(stage, _parameters(text, cycle, stage, iteration)[0], dict(inputs), token)


@lru_cache(maxsize=64)
def _parameters(text: str, cycle: str, stage: str, iteration: int) -> tuple[StageParameters, str]:
    parameters = stage_parameters(_spec(text), cycle, stage, iteration)
    return parameters, json.dumps(parameters.dump())
