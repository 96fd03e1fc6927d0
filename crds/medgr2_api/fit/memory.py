"""Memory of one process that trains, samples or scores: what stands there at its peak.

Bytes a parameter P of the model, N of what is trained, w processes of one training. On a GPU a frozen base is in
bfloat16 and what is trained in float32 under autocast; on a CPU all is float32.

    weights        P · 4 where all of it is trained; frozen P · 2 on a GPU where adapters stand on the base, else P · 4;
                   with QLoRA .516 bytes of each weight under adapters, and one layer's largest unpacked
    gradients      N · 4; with data parallelism as much again for the buckets that are averaged
    optimizer      N · 8: Adam's two moments in float32
    Zero2          optimizer / w, gradients / w and two buckets; weights in bfloat16 and their float32 masters / w
    Zero3          also weights / w, and the layers that are gathered
    reference      P · 4, GRPO of the whole model with a KL term: a frozen copy; adapters are switched off instead
    activations    `activations`, below
    head           logits of one tile of the fused LM head
    R              its weights, frozen, beside the policy in GRPO

Activations and gradients do not stand at their largest together: going backwards, one shrinks as the other grows. The
peak counts the larger, or both where gradients stay from batch to batch (accumulation) or lie in buckets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .shapes import ModelShape, VisionShape

GIB = 2**30
_FLOAT, _BFLOAT = 4, 2
#: Interpreter with torch, transformers, trl and peft imported, before a model is loaded (`make bench NAME=fit`).
PROCESS = 0.55 * GIB
#: What the driver, cuBLAS and cuDNN take of a GPU as soon as a process uses it, and what PyTorch's allocator cannot use
#: of what it has reserved (assumed: no GPU was at hand).
CUDA_CONTEXT, FRAGMENTATION = 1.0 * GIB, 0.08
#: What a stage on a CPU keeps of what has come and gone in its steps: it may keep a GiB (`medgr2_jobs.runner.
#: process_tuning`), and blocks of one step's sizes do not fit the next one's. SFT by adapters of the 58 M shape held
#: 2,318 MiB at most so, and 1,743 where everything freed was given back.
_KEPT_FREED = 0.5 * GIB
#: A weight in NF4 by bitsandbytes: 4 bits, 8 bits of scale for 64 of them, 32 bits for the scale of 256 such scales.
_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
#: DeepSpeed's default buckets: `reduce_bucket_size` and `allgather_bucket_size` of 5e8 elements, in bfloat16.
_ZERO_BUCKETS = 2 * 5e8 * _BFLOAT
#: Pixels that a process keeps preprocessed (`medgr2_jobs.models.patches.pixel_cache`).
_PIXELS_KEPT = 0.5 * GIB


@dataclass(frozen=True)
class MemoryPart:
    """Something that takes memory."""

    name: str
    bytes: float


@dataclass(frozen=True)
class Need:
    """What a process needs, part by part."""

    parts: tuple[MemoryPart, ...]

    @property
    def total(self) -> float:
        """Bytes."""
        return sum(part.bytes for part in self.parts)

    @property
    def least(self) -> float:
        """Bytes without what depends on batch and length."""
        return sum(part.bytes for part in self.parts if part.name not in ("activations", "keys and values"))


@dataclass(frozen=True)
class BatchSize:
    """What goes through a model at once, in one process."""

    rows: int
    tokens: int
    """Of a row: picture, prompt and answer."""
    image_tokens: int
    """Of them the picture's."""
    pictures: int
    """Different pictures that go through the tower: at most one a row."""

    @property
    def all_tokens(self) -> int:
        return self.rows * self.tokens


@dataclass(frozen=True)
class TrainingSetup:
    """How a model is trained."""

    rank: int
    """Of LoRA's adapters; 0: every weight is trained."""
    batch: BatchSize
    processes: int = 1
    zero: int = 0
    """DeepSpeed's ZeRO stage: 0, 2 or 3."""
    accumulation: int = 1
    checkpointing: bool = False
    """Only the layers' inputs are kept, and a layer is run again on the way back."""
    on_gpu: bool = True
    base_bytes: float = 0.0
    """Of one frozen parameter; 0 for the default: as matrix products."""
    bfloat16: bool | None = None
    """Whether matrix products are in bfloat16; None: on a GPU."""
    quantized: bool = False
    """Whether the weights under adapters have 4 bits."""
    tower_frozen: bool = False
    """Whether the vision tower stays as it is where all else is trained."""
    eager: bool = False
    """Whether attention keeps its matrix."""
    loss_positions: int = 0
    """Positions of the batch whose logits are kept in float32 (the reward model's likelihood head)."""

    @property
    def halved(self) -> bool:
        """Whether matrix products take two bytes a number."""
        return self.on_gpu if self.bfloat16 is None else self.bfloat16

    @property
    def frozen_bytes(self) -> float:
        """Of one frozen parameter that is not quantized."""
        return self.base_bytes or (_BFLOAT if self.halved else _FLOAT)


def text_activations(model: ModelShape, *, frozen: bool, halved: bool, rank: int) -> float:
    """Bytes that one layer of the language model keeps of one token for the way back.

    Of a layer with hidden size h, queries q, keys k and MLP of width i, autograd keeps: the input of each norm, and
    where the norm is trained what it has normalised (float32 each: h, h); the inputs of q/k/v, of o and of gate/up
    (h, q, h); the rotated query and keys and values (q, 2k); gate, its activation, up, and their product (4i). Adapters
    keep what they have projected (7r). In bfloat16 all but the norms' is halved. Counted by saved_tensors_hooks
    (tests/unit/jobs/models/test_fit_formulas.py).
    """
    text = model.text
    norms = (2 if frozen else 4) * text.hidden
    linear = 2 * text.hidden + 2 * text.queries + 2 * text.keys + 4 * text.intermediate + 7 * rank
    return norms * _FLOAT + linear * (_BFLOAT if halved else _FLOAT)


def attention_matrix(model: ModelShape, batch: BatchSize, *, halved: bool) -> float:
    """Bytes that one layer keeps of eager attention: what each token gives to each, of every head, in float32 as the
    softmax makes it, and in bfloat16 as the product takes it."""
    return batch.rows * model.text.heads * batch.tokens**2 * (_FLOAT + (_BFLOAT if halved else 0))


def vision_activations(vision: VisionShape, *, halved: bool) -> float:
    """Bytes that one block of the tower keeps of one patch where the tower is trained.

    With width d and MLP of width i: the norms' inputs, and normalised where it is RMSNorm (4d or 2d); the inputs of
    qkv, of the projection and of the MLP (3d); query, key, value and what attention gives (5d with its copies); the MLP
    (4i with a gate, 2i without).
    """
    norms = (4 if vision.gated else 2) * vision.hidden
    linear = 8 * vision.hidden + (4 if vision.gated else 2) * vision.intermediate
    return norms * _FLOAT + linear * (_BFLOAT if halved else _FLOAT)


def activations(model: ModelShape, training: TrainingSetup) -> float:
    """Bytes that the way back needs, of the whole batch.

    With checkpointing a layer keeps its input only (h), and one layer at a time has everything, with the gradients
    of what it keeps beside it. The tower counts where it is trained (all weights); a frozen one keeps nothing, and its
    largest block comes and goes before.
    """
    batch, frozen = training.batch, training.rank > 0
    layer = batch.all_tokens * text_activations(model, frozen=frozen, halved=training.halved, rank=training.rank)
    if training.eager:
        layer += attention_matrix(model, batch, halved=training.halved)
    width = _BFLOAT if training.halved and frozen else _FLOAT
    if training.checkpointing:
        text = batch.all_tokens * model.text.layers * model.text.hidden * width + 1.5 * layer
    else:
        text = (model.text.layers + 0.5) * layer
    patches = batch.pictures * batch.image_tokens * model.vision.merge**2
    block = vision_activations(model.vision, halved=training.halved)
    if frozen or training.tower_frozen:
        vision = patches * block
        return max(text, vision) + training.loss_positions * model.text.vocabulary * 3 * _FLOAT
    if training.checkpointing:
        vision = patches * (model.vision.depth * model.vision.hidden * width + 1.5 * block)
    else:
        vision = patches * (model.vision.depth + 0.5) * block
    # what goes into the tower, and into the merger behind it
    vision += patches * (6 * model.vision.patch**2 + 3 * model.vision.hidden) * _FLOAT
    return text + vision + training.loss_positions * model.text.vocabulary * 3 * _FLOAT


def training_need(model: ModelShape, training: TrainingSetup, *beside: MemoryPart) -> Need:
    """What a process of a training needs; see the module's docstring.

    Args:
        model: what is trained.
        training: how.
        beside: what else lies in the same memory, such as R and GRPO's reference.
    """
    full = training.rank == 0
    tower = model.vision.parameters - model.vision.joins if training.tower_frozen else 0
    trained = model.parameters - tower if full else model.text.adapters(training.rank)
    frozen = training.frozen_bytes
    zero, share = training.zero, training.processes
    weights = float(model.parameters * (_FLOAT if full else frozen))
    gradients, optimizer, buckets = float(trained * _FLOAT), float(trained * 2 * _FLOAT), 0.0
    if zero:
        master = trained * _FLOAT / share
        weights = (model.parameters * (_BFLOAT if full else frozen)) / (share if zero == 3 else 1) + master
        gradients, optimizer = trained * _BFLOAT / share, optimizer / share
        buckets = min(_ZERO_BUCKETS, 2 * trained * _BFLOAT)
        if zero == 3:  # the layer at work and the next one are whole
            buckets += 2 * model.text.layer * _BFLOAT
    elif share > 1:
        buckets = trained * _FLOAT
    moving = activations(model, training)
    if training.quantized:
        packed = model.text.layers * model.text.linear
        weights -= packed * (frozen - _NF4)
        moving += model.text.hidden * model.text.intermediate * frozen  # the largest, unpacked
    if not full:
        weights += trained * _FLOAT * (0 if zero else 1)
    stays = training.accumulation > 1 or buckets > 0
    passing = moving + gradients if stays else max(moving, gradients)
    parts = [MemoryPart("weights", weights), MemoryPart("optimizer", optimizer)]
    if buckets:
        parts.append(MemoryPart("buckets", buckets))
    if stays:
        parts += [MemoryPart("gradients", gradients), MemoryPart("activations", moving)]
    else:  # the larger of the two, in the name of what can be changed
        parts += [
            MemoryPart("gradients", min(gradients, passing)),
            MemoryPart("activations", passing - min(gradients, passing)),
        ]
    parts += beside
    return Need((*parts, *_overhead(parts, passing, on_gpu=training.on_gpu)))


def reading_need(
    model: ModelShape,
    batch: BatchSize,
    *,
    on_gpu: bool,
    cached_tokens: int = 0,
    read_bytes: float = 0.0,
    beside: tuple[MemoryPart, ...] = (),
) -> Need:
    """What a process that only reads a model needs: to score rows, or to sample answers.

    Weights in bfloat16 on a GPU and float32 on a CPU; keys and values of every token that is sampled on (layers · 2k);
    one layer's activations of the batch, or one block's of its pictures.

    Args:
        model: what is read.
        batch: its largest batch.
        on_gpu: where.
        cached_tokens: tokens whose keys and values are kept.
        read_bytes: of one parameter, where it is not the default.
        beside: what else lies there.
    """
    width = _BFLOAT if on_gpu else _FLOAT
    weights = model.parameters * (read_bytes or width)
    layer = text_activations(model, frozen=True, halved=on_gpu, rank=0)
    patches = batch.pictures * batch.image_tokens * model.vision.merge**2
    passing = max(batch.all_tokens * layer, patches * vision_activations(model.vision, halved=on_gpu))
    parts = [MemoryPart("weights", weights), *beside, MemoryPart("activations", passing)]
    if cached_tokens:
        parts.append(MemoryPart("keys and values", keys_and_values(model, cached_tokens, on_gpu=on_gpu)))
    return Need((*parts, *_overhead(parts, passing, on_gpu=on_gpu)))


def keys_and_values(model: ModelShape, tokens: int, *, on_gpu: bool = True) -> float:
    """Bytes of the cache of so many tokens: keys and values of every layer."""
    return tokens * model.text.layers * 2 * model.text.keys * (_BFLOAT if on_gpu else _FLOAT)


def _overhead(parts: list[MemoryPart], passing: float, *, on_gpu: bool) -> Iterator[MemoryPart]:
    if on_gpu:
        yield MemoryPart("CUDA and fragmentation", CUDA_CONTEXT + FRAGMENTATION * sum(part.bytes for part in parts))
    else:
        yield MemoryPart("process", PROCESS + min(passing, _KEPT_FREED))


def host_need(model: ModelShape, processes: int, *, trained_whole: bool, zero: int, others: float = 0.0) -> Need:
    """Main memory of one pod whose processes use GPUs.

    Each process imports the libraries, keeps pixels, and reads the weights into main memory before they go to its GPU:
    P · 4 where they are trained, P · 2 where they are frozen. Zero3 shares that out. Saving gathers the weights once.

    Args:
        model: the largest that a process loads.
        processes: in the pod.
        trained_whole: whether all of its weights are trained.
        zero: DeepSpeed's stage.
        others: bytes of what one process loads beside it at the same time.
    """
    loading = model.parameters * (_FLOAT if trained_whole else _BFLOAT)
    per_process = PROCESS + _PIXELS_KEPT + CUDA_CONTEXT + others
    read = loading if zero == 3 else loading * processes
    return Need((MemoryPart("processes", processes * per_process), MemoryPart("weights while they are loaded", read)))
