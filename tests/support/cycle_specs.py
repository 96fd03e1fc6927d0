"""The cycles that the planner is tried with."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from medgr2_api.cycle import CycleSpec, Metadata

SPECS: tuple[dict[str, Any], ...] = (
    {},
    {"iterations": 1, "maxParallelStages": 1, "stages": [{"name": "grpo", "enabled": False}]},
    {
        "iterations": 1,
        "curation": {"selection": {"strategy": "All"}},
        "stages": [{"name": "grpo", "enabled": False}, {"name": "preferences", "enabled": False}],
    },
    {"iterations": 2, "earlyStopping": {"patience": 1, "minDelta": 0.0}, "policy": {"initFrom": "Previous"}},
    {
        "iterations": 1,
        "pauseBefore": ["sft"],
        "stages": [{"name": "evaluate", "enabled": False}, {"name": "generate", "shards": 2}],
    },
    {
        "iterations": 1,
        "maxParallelStages": 3,
        "stages": [{"name": "evaluate", "shards": 3, "resources": {"limits": {"nvidia.com/gpu": 1}}}],
    },
    {
        "iterations": 1,
        "failurePolicy": {"maxRetries": 1, "maxInfraRestarts": 2, "backoffSeconds": 0},
        "stages": [{"name": "score", "timeoutSeconds": 500, "pendingDeadlineSeconds": 700}],
    },
    {
        "iterations": 1,
        "budget": {"gpuHours": 1, "generatorUSD": 0.5},
        "stages": [
            {"name": name, "numNodes": 2, "resources": {"limits": {"nvidia.com/gpu": 4}}}
            for name in ("reward", "sft", "grpo")
        ],
    },
    {"iterations": 1, "activeDeadlineSeconds": 20000, "budget": {"generatorUSD": 0.3, "onExceeded": "Fail"}},
)


@lru_cache(maxsize=64)
def spec_of(number: int) -> CycleSpec:
    """One of the specs."""
    return make_spec(**SPECS[number % len(SPECS)])


@lru_cache(maxsize=256)
def metadata(generation: int) -> Metadata:
    """The metadata of the one cycle."""
    name = "a-rather-long-name-of-a-cycle-for-the-test-of-names"
    return Metadata(name=name, namespace="ml", uid="uid-1", generation=generation)


def make_spec(**changes: Any) -> CycleSpec:
    """A small valid spec, with changes at its top level (policy merged)."""
    document: dict[str, Any] = {
        "iterations": 2,
        "workspace": {"persistentVolumeClaim": {"claimName": "data"}},
        "data": {"sources": [{"name": "seed", "format": "VQAJsonl", "uri": "data/seed"}]},
        "generator": {
            "openAI": {"model": "m", "baseURL": "http://m:8000/v1"},
            "prices": {"inputUSDPerMillionTokens": 1, "outputUSDPerMillionTokens": 4},
        },
        "rewardModel": {"baseModel": "models/r"},
    }
    document |= changes
    document["policy"] = {"baseModel": "models/p", **changes.get("policy", {})}
    return CycleSpec.model_validate(document)
