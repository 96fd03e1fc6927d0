"""What a cycle leaves on the workspace's volume by its end, and what lies there beside it for a while.

base models    2 bytes a parameter as they are fetched (bfloat16), or what their files have; each once: prepare links
images         pixels · 1.5: a PNG of a photograph takes about half of its three bytes
models         what trainings publish: the whole model in float32 (4 bytes), or adapters (4 bytes each of theirs)
               where they stand on the base (`publishing`); a reward model is published whole, adapters merged
checkpoints    of the training that has the largest, three of them: two are kept, and a third is being written
tables         bytes a row, compressed
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from medgr2_api.cycle import ResolvedSpec
from medgr2_api.stages import DISTILL, EVALUATE, GRPO, REWARD, SFT
from medgr2_api.training_spec import Adapters, ResolvedLoRA

from .counts import DRAWN_PIXELS, Counts, DataSize
from .memory import MemoryPart, Need
from .publishing import adapters_of
from .result import ModelShapes
from .shapes import ModelShape

_FLOAT, _MOMENTS = 4, 8
BYTES_PER_PIXEL = 1.5
#: Checkpoints of a run that lie there at once: `save_total_limit` of training/trainer.py, and the one being written.
CHECKPOINTS = 3
#: Bytes of a row in parquet, with the texts of an instruction-tuned model: candidates with decisions and scores,
#: answers of GRPO, answers of an evaluation, graded rows.
_CANDIDATE, _ROLLOUT, _PREDICTION, _GRADED = 1_500, 400, 400, 500
#: Tokenizer beside the weights of a model: bytes of its tokenizer.json for each token (11.4 MB of Qwen2.5's 152,064).
_TOKEN = 75


@dataclass(frozen=True)
class BaseFiles:
    """Bytes of the base models' files, where they lie on the volume already; 0: to be fetched."""

    policy: float = 0.0
    reward: float = 0.0


def disk_need(
    spec: ResolvedSpec, models: ModelShapes, data: DataSize, counts: Counts, files: BaseFiles, pixels: float = 0.0
) -> Need:
    """Bytes over the whole cycle, part by part.

    Args:
        spec: the cycle's.
        models: the shapes of its models.
        data: how many images.
        counts: rows of an iteration.
        files: the base models' files.
        pixels: of all images, where they have been looked at; else each has `data.maxPixels`.
    """
    published = [size for _, size, _ in _trainings(spec, models)]
    checkpoint = max((size for _, _, size in _trainings(spec, models)), default=0.0)
    parts = [
        MemoryPart("base models", _base(spec, models, files)),
        MemoryPart(
            "images",
            (pixels or data.images * (DRAWN_PIXELS if spec.data.drawn else spec.data.max_pixels)) * BYTES_PER_PIXEL,
        ),
        MemoryPart("models", sum(published)),
        MemoryPart("checkpoints", CHECKPOINTS * checkpoint),
        MemoryPart("tables", _tables(spec, counts)),
    ]
    return Need(tuple(parts))


def _base(spec: ResolvedSpec, models: ModelShapes, files: BaseFiles) -> float:
    bases = {
        spec.policy.base_model: files.policy or models.policy.parameters * 2,
        spec.reward_model.base_model: files.reward or models.reward.parameters * 2,
    }
    distillation = spec.generator.distillation
    if distillation is not None and distillation.base_model and models.student is not None:
        bases[distillation.base_model] = models.student.parameters * 2
    return sum(bases.values())


def _trainings(spec: ResolvedSpec, models: ModelShapes) -> Iterator[tuple[str, float, float]]:
    """(stage, bytes that all its runs publish, bytes of one checkpoint)."""
    student = models.student or models.policy
    kinds: list[tuple[str, ModelShape, ResolvedLoRA]] = [
        (SFT.name, models.policy, spec.policy.sft.lora),
        (GRPO.name, models.policy, spec.policy.grpo.lora),
        (REWARD.name, models.reward, spec.reward_model.training.lora),
    ]
    if spec.generator.distillation is not None:
        kinds.append((DISTILL.name, student, spec.generator.distillation.training.lora))
    for name, model, lora in kinds:
        if spec.stage(name).enabled:
            rank = lora.rank if adapters_of(spec, name) else 0
            yield name, spec.iterations * published(model, rank), checkpoint(model, lora)


def published(model: ModelShape, rank: int = 0) -> float:
    """Bytes of what a training publishes: adapters of a rank in float32, or, with 0, the whole model with its
    tokenizer."""
    if rank:
        return model.text.adapters(rank) * _FLOAT
    return model.parameters * _FLOAT + model.text.vocabulary * _TOKEN


def checkpoint(model: ModelShape, lora: ResolvedLoRA) -> float:
    """Bytes of one checkpoint: what is trained, and Adam's two moments of it, in float32."""
    trained = model.text.adapters(lora.rank) if isinstance(lora, Adapters) else model.parameters
    return trained * (_FLOAT + _MOMENTS)


def _tables(spec: ResolvedSpec, counts: Counts) -> float:
    rollouts = counts.prompts * spec.policy.grpo.num_generations if spec.stage(GRPO.name).enabled else 0
    conditions = 1 + len(spec.evaluation.controls)
    # of two checkpoints, by two scorings, as they were asked and as they were measured
    predictions = counts.evaluated * conditions * 2 * 2 * 2 if spec.stage(EVALUATE.name).enabled else 0
    return spec.iterations * (counts.candidates * _CANDIDATE + rollouts * _ROLLOUT + predictions * _PREDICTION) + (
        counts.graded * _GRADED
    )
