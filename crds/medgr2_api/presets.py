"""The one place where parameters that the spec leaves open get their values; behind it nothing has defaults for them.

Each preset is a table from the field's path in the spec to its value; every preset stands on `Default`. Free-form
`trainer` options are merged key by key, the user's word last. A few values follow from others: those of a source from
its format, LoRA's alpha and GRPO's learning rate from its rank, whether a server is outside the site from its address.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from .curation import SelectionStrategy
from .cycle import CycleSpec, Preset, ResolvedSpec
from .data import IMAGES_ONLY, STAYS_INSIDE, SourceRole
from .generator import GENERATORS, KNOWN_QUESTION_TYPES
from .hashing import normalise

TRAINER_FIELDS = frozenset({"trainer", "retrainTrainer"})

_SELECTION = "curation.selection"
_USED_BY: dict[str, tuple[SelectionStrategy, ...]] = {
    f"{_SELECTION}.threshold": (SelectionStrategy.THRESHOLD,),
    f"{_SELECTION}.precision": (SelectionStrategy.FITTED_PRECISION,),
    f"{_SELECTION}.k": (SelectionStrategy.TOP_K, SelectionStrategy.RANDOM_K),
}

_DEFAULT: dict[str, Any] = {
    "answerFormat": "Letter",
    "generator.paradigms": [{"name": "MetaCognitive", "weight": 1}],
    "generator.questionTypes": list(KNOWN_QUESTION_TYPES),
    "generator.candidates": 50_000,
    "generator.questionsPerImage": 5,
    "generator.concurrency": 64,
    "generator.scripted.errorRate": 0.45,
    "generator.scripted.blindSpots": 0.0,
    "generator.scripted.irrelevantRate": 0.08,
    "generator.scripted.incoherentRate": 0.07,
    "generator.distillation.training.lora": {"rank": 64},
    "generator.distillation.training.learningRate": 1e-4,
    "generator.distillation.training.numEpochs": 2,
    "rewardModel.head": "LastToken",
    "rewardModel.mismatchesPerItem": 1,
    "rewardModel.retrainOn": "CrossExamined",
    "rewardModel.retrainFrom": "Base",
    "rewardModel.replayFraction": 0.1,
    "rewardModel.promotion.minSpearman": 0.6,
    "rewardModel.promotion.minPairwiseAccuracy": 0.75,
    "rewardModel.promotion.minImageSensitivity": 0.6,
    "rewardModel.promotion.maxMeanAbsoluteError": 4.0,
    "rewardModel.promotion.minAurocGain": 0.0,
    "rewardModel.promotion.maxRegression": 0.02,
    "rewardModel.promotion.nonInferiorityMargin": 0.05,
    "rewardModel.training.lora": {"rank": 16},
    "rewardModel.training.learningRate": 1e-4,
    "rewardModel.training.numEpochs": 1,
    "curation.selection.strategy": "Threshold",
    "curation.selection.threshold": 3.0,
    "curation.selection.precision": 0.95,
    "curation.selection.k": 11_000,
    "curation.correct": True,
    "crossExamination.samplesPerQuestion": 4,
    "crossExamination.temperature": 1.0,
    "crossExamination.minPosterior": 0.8,
    "crossExamination.maxQuestions": 10_000,
    "policy.sft.lora": {"rank": 64},
    "policy.sft.learningRate": 1e-4,
    "policy.sft.numEpochs": 1,
    "policy.grpo.rewards": [
        {"type": "RewardModel", "weight": 0.8, "normalization": "MinMax"},
        {"type": "AnswerMatch", "weight": 0.2},
    ],
    "policy.grpo.promptSource": "Candidates",
    "policy.grpo.seedFraction": 0.0,
    "policy.grpo.whenPolicyBeatsReward": "Skip",
    "policy.grpo.numGenerations": 8,
    "policy.grpo.promptsPerStep": 64,
    "policy.grpo.resampleGroups": 0,
    "policy.grpo.klCoefficient": 0.001,
    "policy.grpo.numEpochs": 1,
    "policy.grpo.lora": {"rank": 64},
    "policy.release": "Best",
    "policy.preferences.prompts": 4096,
    "policy.preferences.samplesPerPrompt": 8,
    "policy.preferences.temperature": 1.0,
    "policy.preferences.topP": 1.0,
    "policy.preferences.seedFraction": 0.5,
}

#: GRPO's learning rate without and with adapters, which need about ten times that of all weights in SFT and in RL
#: (Schulman et al., LoRA Without Regret, 2025).
_GRPO_RATE = {False: 1e-6, True: 1e-5}

#: Presets whose full fine-tuning trains the vision tower, too: those of works that do (Med-R1's), and the built-in
#: model, which has to learn to see. Qwen's own fine-tuning script, LLaMA-Factory and ms-swift leave it as it is.
_TRAINS_TOWER = (Preset.PAPER, Preset.MEDR1, Preset.TINY)

#: Optimizer settings of the tiny models' supervised training.
_SMALL_BATCHES: dict[str, Any] = {
    "per_device_train_batch_size": 32,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 20,
    "weight_decay": 0.01,
    "adam_beta2": 0.98,
}

PRESETS: dict[Preset, dict[str, Any]] = {
    Preset.DEFAULT: {},
    Preset.PAPER: {
        "rewardModel.retrainOn": "PolicyAnswers",
        "rewardModel.retrainFrom": "Previous",
        "rewardModel.replayFraction": 0.5,
        "curation.correct": False,
        "policy.grpo.rewards": [
            {"type": "RewardModel", "weight": 0.8, "normalization": "None"},
            {"type": "AnswerMatch", "weight": 0.2},
        ],
        "policy.grpo.promptSource": "Kept",
        "policy.grpo.whenPolicyBeatsReward": "Train",
        "policy.release": "Last",
        "policy.grpo.numGenerations": 4,
        "policy.grpo.klCoefficient": 0.04,
        "policy.grpo.trainer": {"loss_type": "grpo", "scale_rewards": "group"},
    },
    Preset.MEDR1: {
        "policy.grpo.numGenerations": 4,
        "policy.grpo.klCoefficient": 0.04,
        "policy.grpo.trainer": {"loss_type": "grpo", "scale_rewards": "group"},
    },
    # A loop of minutes on two CPU cores: models of half a million parameters on phantoms (docs/measurements.md).
    Preset.TINY: {
        "answerFormat": "OptionText",
        "generator.candidates": 2800,
        "generator.questionsPerImage": 4,
        "generator.concurrency": 1,
        "generator.scripted.errorRate": 0.1,
        "generator.scripted.blindSpots": 0.34,
        "generator.distillation.training.lora": {"rank": 0},
        "generator.distillation.training.learningRate": 1.5e-3,
        "generator.distillation.training.trainer": {"max_steps": 400, "loss_type": "nll", **_SMALL_BATCHES},
        "rewardModel.head": "LastTokenAndLikelihood",
        # Adapters leave the vision tower as its base has it. Trained on 60 pictures it learns these by heart, and R
        # then takes one answer in ten of other pictures for another (docs/measurements.md).
        "rewardModel.training.lora": {"rank": 16},
        "rewardModel.training.learningRate": 3e-3,
        "rewardModel.mismatchesPerItem": 3,
        "rewardModel.training.trainer": {"max_steps": 360, **_SMALL_BATCHES},
        "rewardModel.training.retrainTrainer": {"max_steps": 720},
        "curation.selection.threshold": 2.0,
        "policy.sft.lora": {"rank": 0},
        "policy.sft.learningRate": 1.5e-3,
        "policy.sft.trainer": {"max_steps": 400, "loss_type": "nll", **_SMALL_BATCHES},
        # After SFT the policy is sure of itself: a higher temperature makes it try other answers. The trusted answers
        # weigh as much as R, whose errors would otherwise unlearn what SFT knows (docs/measurements.md).
        "policy.grpo.rewards": [
            {"type": "RewardModel", "weight": 0.5, "normalization": "MinMax"},
            {"type": "AnswerMatch", "weight": 0.5},
        ],
        "policy.grpo.klCoefficient": 0.0,
        "policy.grpo.promptsPerStep": 0,  # 32 by the options below
        "policy.grpo.seedFraction": 0.33,
        "policy.grpo.lora": {"rank": 0},
        "policy.grpo.learningRate": 5e-4,
        "policy.grpo.trainer": {
            "max_steps": 36,
            "per_device_train_batch_size": 256,
            "gradient_accumulation_steps": 1,
            "max_completion_length": 18,
            "temperature": 1.3,
            "scale_rewards": "batch",
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 3,
            "adam_beta2": 0.98,
        },
        "policy.preferences.prompts": 240,
        "policy.preferences.samplesPerPrompt": 4,
        "policy.preferences.temperature": 1.2,
        "policy.preferences.seedFraction": 1.0,
    },
}


@dataclass(frozen=True)
class ValueOrigin:
    """A parameter's value and who set it: `spec`, the name of a preset, or `derived` from other values."""

    value: Any
    source: str


def resolve(spec: CycleSpec) -> ResolvedSpec:
    """The spec with every preset-owned parameter filled in.

    Raises:
        ValidationError: a table above lacks a value, or has one that the field does not take; names the field.
    """
    return resolve_with_origins(spec)[0]


def resolve_with_origins(spec: CycleSpec) -> tuple[ResolvedSpec, dict[str, ValueOrigin]]:
    """As `resolve`, and for every preset-owned parameter where its value came from (`medgr2 plan` shows it)."""
    document = spec.dump()
    origins: dict[str, ValueOrigin] = {}
    table = {path: (value, Preset.DEFAULT) for path, value in _DEFAULT.items()}
    table |= {path: (value, spec.preset) for path, value in PRESETS[spec.preset].items()}
    strategy = spec.curation.selection.strategy or table[f"{_SELECTION}.strategy"][0]
    table = {path: entry for path, entry in table.items() if strategy in _USED_BY.get(path, (strategy,))}
    for path, (value, source) in sorted(table.items()):
        *parents, leaf = path.split(".")
        target = _descend(document, parents)
        if target is None:  # an optional part that the user did not ask for, such as generator.scripted
            continue
        if leaf in TRAINER_FIELDS:
            given = target[leaf]
            target[leaf] = normalise({**value, **given})
            for key, item in target[leaf].items():
                origins[f"{path}.{key}"] = ValueOrigin(item, "spec" if key in given else str(source))
            continue
        if leaf in target:
            origins[path] = ValueOrigin(target[leaf], "spec")
        else:
            target[leaf] = deepcopy(value)
            origins[path] = ValueOrigin(value, str(source))
    origins |= _derive(document)
    return ResolvedSpec.model_validate(document), origins


def _derive(document: dict[str, Any]) -> dict[str, ValueOrigin]:
    """Fills in, in place, what follows from other values; returns what it set."""
    derived: list[tuple[str, dict[str, Any], str, Any]] = []
    for index, source in enumerate(document["data"]["sources"]):
        images_only = source["format"] in IMAGES_ONLY
        role = SourceRole.IMAGES if images_only else SourceRole.SEED
        derived.append((f"data.sources[{index}]", source, "role", str(role)))
        derived.append((f"data.sources[{index}]", source, "allowExternal", source["format"] not in STAYS_INSIDE))
    for name, kind in GENERATORS.items():
        generator = document["generator"].get(name)
        if generator is not None and "external" in kind.model_fields:
            leaves = kind.model_validate(generator).has_egress
            derived.append((f"generator.{name}", generator, "external", leaves))
    for parent in ("generator.distillation.training", "rewardModel.training", "policy.sft", "policy.grpo"):
        lora = (_descend(document, parent.split(".")) or {}).get("lora")
        if lora and lora["rank"]:
            derived.append((f"{parent}.lora", lora, "alpha", 2 * lora["rank"]))
    policy = document["policy"]
    grpo = policy["grpo"]
    if not (policy["sft"]["lora"]["rank"] and grpo["lora"]["rank"]):  # adapters never change the tower
        frozen = document["preset"] not in _TRAINS_TOWER
        derived.append(("policy.loading", policy["loading"], "freezeVisionTower", frozen))
    derived.append(("policy.grpo", grpo, "learningRate", _GRPO_RATE[bool(grpo["lora"]["rank"])]))
    origins = {}
    for path, target, leaf, value in derived:
        if leaf not in target:
            target[leaf] = deepcopy(value)
            origins[f"{path}.{leaf}"] = ValueOrigin(value, "derived")
    return origins


def _descend(document: dict[str, Any], parents: list[str]) -> dict[str, Any] | None:
    for name in parents:
        child = document.get(name)
        if not isinstance(child, dict):
            return None
        document = child
    return document
