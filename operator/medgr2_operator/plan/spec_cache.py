"""What follows from a spec alone (graph, parameters), computed once per spec."""

from __future__ import annotations

import json
from functools import cached_property, lru_cache
from typing import Any

from pydantic import ValidationError

from medgr2_api.cycle import CycleSpec, ResolvedSpec
from medgr2_api.hashing import canonical_json, sha256_of
from medgr2_api.presets import resolve
from medgr2_api.stages import StageParameters, stage_parameters

from .graph import Graph, Shape, build

#: Fields that steer a run without changing what its stages are.
_STEERING = {"suspend", "approved", "pause_before", "restart_from", "iterations", "max_parallel_stages", "budget"}
#: Fields, by wire name, that say where and when stages run, and for how long: no parameter follows from them.
_ELSEWHERE = {
    "workspace",
    "template",
    "queueing",
    "failurePolicy",
    "earlyStopping",
    "activeDeadlineSeconds",
    "pendingDeadlineSeconds",
    "ttlSecondsAfterFinished",
}
_ASKED_OF_A_STAGE = ("enabled", "shards")


class CachedSpec:
    """A spec's graph and its stages' parameters. What each plan asks for is small, and cached."""

    def __init__(self, cycle: str, text: str) -> None:
        self._cycle = cycle
        self._text = text

    @cached_property
    def _shape(self) -> Shape:
        return Shape.of(_spec(self._text))

    @cached_property
    def asked(self) -> str:
        """Digest of all that a stage's parameters can follow from, as the user wrote it: no upgrade changes it."""
        written = json.loads(self._text)
        asked = {name: value for name, value in written.items() if name not in _ELSEWHERE}
        for stage in asked.pop("stages", []):
            asked |= {f"{stage['name']}.{name}": stage[name] for name in _ASKED_OF_A_STAGE if name in stage}
        return sha256_of(asked)[:16]

    @cached_property
    def written(self) -> str:
        """What `asked` is the digest of, as a document: what a status keeps of a spec."""
        asked: dict[str, Any] = {
            name: value for name, value in json.loads(self._text).items() if name not in _ELSEWHERE
        }
        settings = [
            {name: stage[name] for name in ("name", *_ASKED_OF_A_STAGE) if name in stage}
            for stage in asked.pop("stages", [])
        ]
        asked["stages"] = [stage for stage in settings if len(stage) > 1]
        return canonical_json(asked if asked["stages"] else {k: v for k, v in asked.items() if k != "stages"})

    def earlier(self, written: str) -> CachedSpec | None:
        """What followed from an earlier spec of the cycle; None: this version cannot read it."""
        workspace = json.dumps(json.loads(self._text)["workspace"])  # immutable, and nothing follows from it
        return _earlier(self._cycle, written, workspace)

    @property
    def seed(self) -> int:
        """Of everything random."""
        return _spec(self._text).seed

    def graph(self, iterations: int) -> Graph:
        """The stage graph over `iterations` iterations."""
        return build(self._shape, iterations)

    def parameters(self, stage: str, iteration: int) -> StageParameters:
        """A stage's parameters."""
        return stage_parameters(_spec(self._text), self._cycle, stage, iteration)


def cached_spec(cycle: str, spec: CycleSpec) -> CachedSpec:
    """What follows from a spec."""
    return _cached_spec(cycle, spec.model_dump_json(by_alias=True, exclude=_STEERING, exclude_defaults=True))


@lru_cache(maxsize=256)
def _earlier(cycle: str, written: str, workspace: str) -> CachedSpec | None:
    try:
        return cached_spec(cycle, CycleSpec.model_validate({**json.loads(written), "workspace": json.loads(workspace)}))
    except (ValueError, TypeError, ValidationError):
        return None


@lru_cache(maxsize=1024)
def _cached_spec(cycle: str, text: str) -> CachedSpec:
    return CachedSpec(cycle, text)


@lru_cache(maxsize=16)
def _spec(text: str) -> ResolvedSpec:
    """Large, and needed only while its stages are started."""
    return resolve(CycleSpec.model_validate_json(text))
