"""The one place where parameters that the spec leaves open get their values.

Each preset is a table from the field's path in the spec to its value; every preset stands on `Default`. Free-form
`trainer` options are merged key by key, the user's word last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .cycle import CycleSpec, Preset

TRAINER_FIELDS = frozenset({"trainer", "retrainTrainer"})

_DEFAULT: dict[str, Any] = {
    "answerFormat": "Letter",
    "generator.paradigms": [{"name": "MetaCognitive", "weight": 1}],
    "generator.questionTypes": ["Diagnosis", "Procedural", "Descriptive", "Modality", "Anatomy", "Grading"],
    "generator.candidates": 50_000,
    "generator.questionsPerImage": 5,
    "generator.concurrency": 64,
    "generator.scripted.errorRate": 0.45,
    "generator.scripted.blindSpots": 0.0,
    "generator.scripted.irrelevantRate": 0.08,
    "generator.scripted.incoherentRate": 0.07,
    "rewardModel.head": "LastToken",
    "rewardModel.mismatchesPerItem": 1,
    "rewardModel.replayFraction": 0.5,
    "rewardModel.promotion.minSpearman": 0.6,
    "rewardModel.promotion.minPairwiseAccuracy": 0.75,
    "rewardModel.promotion.minImageSensitivity": 0.6,
    "rewardModel.promotion.maxRegression": 0.02,
    "rewardModel.training.lora": {"rank": 16},
    "rewardModel.training.learningRate": 1e-4,
    "rewardModel.training.numEpochs": 1,
    "curation.selection.strategy": "Threshold",
    "curation.selection.threshold": 3.0,
    "curation.selection.precision": 0.95,
    "curation.selection.k": 11_000,
    "policy.sft.lora": {"rank": 64},
    "policy.sft.learningRate": 1e-4,
    "policy.sft.numEpochs": 1,
    "policy.grpo.rewards": [
        {"type": "RewardModel", "weight": 0.8, "normalization": "MinMax"},
        {"type": "AnswerMatch", "weight": 0.2},
    ],
    "policy.grpo.promptSource": "Candidates",
    "policy.grpo.numGenerations": 8,
    "policy.grpo.klCoefficient": 0.001,
    "policy.grpo.learningRate": 1e-6,
    "policy.grpo.lora": {"rank": 0},
    "policy.preferences.prompts": 4096,
    "policy.preferences.samplesPerPrompt": 8,
    "policy.preferences.temperature": 1.0,
    "policy.preferences.seedFraction": 0.5,
}

PRESETS: dict[Preset, dict[str, Any]] = {
    Preset.DEFAULT: {},
    Preset.PAPER: {
        "policy.grpo.rewards": [
            {"type": "RewardModel", "weight": 0.8, "normalization": "None"},
            {"type": "AnswerMatch", "weight": 0.2},
        ],
        "policy.grpo.promptSource": "Kept",
        "policy.grpo.numGenerations": 4,
        "policy.grpo.klCoefficient": 0.04,
        "policy.grpo.trainer": {"loss_type": "grpo", "scale_rewards": "group"},
    },
    Preset.MEDR1: {
        "policy.grpo.numGenerations": 4,
        "policy.grpo.klCoefficient": 0.04,
        "policy.grpo.trainer": {"loss_type": "grpo", "scale_rewards": "group"},
    },
    Preset.TINY: {},
}


@dataclass(frozen=True)
class Origin:
    """A parameter's value and who set it: `spec`, or the name of a preset."""

    value: Any
    source: str


def resolve(spec: CycleSpec) -> CycleSpec:
    """The spec with every preset-owned parameter filled in."""
    return resolve_with_origins(spec)[0]


def resolve_with_origins(spec: CycleSpec) -> tuple[CycleSpec, dict[str, Origin]]:
    """The resolved spec, and for every preset-owned parameter where its value came from (`medgr2 plan` shows it)."""
    document = spec.dump()
    origins: dict[str, Origin] = {}
    table = {path: (value, Preset.DEFAULT) for path, value in _DEFAULT.items()}
    table |= {path: (value, spec.preset) for path, value in PRESETS[spec.preset].items()}
    for path, (value, source) in sorted(table.items()):
        *parents, leaf = path.split(".")
        target = _descend(document, parents)
        if target is None:  # an optional part that the user did not ask for, such as generator.scripted
            continue
        if leaf in TRAINER_FIELDS:
            given = target.get(leaf) or {}
            target[leaf] = {**value, **given}
            for key, item in target[leaf].items():
                origins[f"{path}.{key}"] = Origin(item, "spec" if key in given else str(source))
            continue
        if leaf in target:
            origins[path] = Origin(target[leaf], "spec")
        else:
            target[leaf] = value
            origins[path] = Origin(value, str(source))
    return CycleSpec.model_validate(document), origins


def _descend(document: dict[str, Any], parents: list[str]) -> dict[str, Any] | None:
    for name in parents:
        child = document.get(name)
        if not isinstance(child, dict):
            return None
        document = child
    return document
