"""Pre-training of the tiny model on pictures of its own: it learns to see, and to read a question.

Two tasks in each batch: captions of phantoms in words that no question uses (`tokenizer.LOOKS`), and questions about
a written note instead of an image. So the base model has what a large one brings along (sight, the answer format)
and lacks what the loop has to teach: what the things in the picture are called when asked for.
"""

from __future__ import annotations

import hashlib
import math
import pickle
import random
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from medgr2_api.hashing import sha256_of
from medgr2_api.training_spec import AnswerFormat

from ...data import synthetic_images
from ...data.synthetic_images import Attributes
from ...errors import Checkpointed, NotFinite
from ...prompts import answers
from ...runner.context import StageContext
from ...store import atomic
from ...store.images import ImageStore
from ..vlm import Encoder, PromptResponse
from . import model as tiny_model
from . import tokenizer as tiny_tokenizer
from .settings import PretrainSettings

_CHECKPOINT_STEPS = 100  # about 7 s: what a `kill -9` may cost
_WARM_UP = 20
_FLOOR = 0.05  # of the peak learning rate, at the end of the cosine


class _Bank(Encoder):
    """An encoder over phantoms that are drawn when first needed; their names are indices."""

    def __init__(self, processor: Any, root: Path, seed: int) -> None:
        super().__init__(processor, ImageStore(root))
        self.seed = seed

    def image(self, sha256: str) -> Image.Image:
        index = int(sha256)
        return synthetic_images.draw(synthetic_images.attributes(self.seed, index), self.seed, index)


def series(seed: int) -> int:
    """The phantom series of the pre-training: shared with no source and no benchmark."""
    return int.from_bytes(hashlib.sha256(f"pretrain/{seed}".encode()).digest()[:6], "big")


def caption(attributes: Attributes, words: str) -> str:
    """What the picture shows, without a sentence around it."""
    kinds = ("modality", "count", "finding", "location")
    if words == "answers":
        return " ".join(attributes.value(kind) for kind in kinds)
    return " ".join(
        tiny_tokenizer.LOOKS[kind][synthetic_images.VALUES[kind].index(attributes.value(kind))] for kind in kinds
    )


def rows(settings: PretrainSettings, seed: int, step: int, answer_format: AnswerFormat) -> list[PromptResponse]:
    """The batch of a step: depends on nothing but its arguments, so a resumed run sees the same."""
    rng = random.Random(f"pretrain/{seed}/{step}")
    examples = []
    for _ in range(settings.batch):
        if rng.random() < settings.caption_share:
            index = rng.randrange(settings.images)
            text = caption(synthetic_images.attributes(series(seed), index), settings.captions)
            examples.append(PromptResponse(str(index), "Describe.", text))
            continue
        attributes = Attributes(**{kind: rng.choice(values) for kind, values in synthetic_images.VALUES.items()})
        question = synthetic_images.question(attributes, rng.choice(synthetic_images.KINDS), rng)
        prompt_text = answers.prompt_text(question.text, question.options, answer_format)
        prompt = f"Note: {caption(attributes, 'answers')} {prompt_text}"
        response = answers.response(question.rationale, question.answer_index, question.options, answer_format)
        examples.append(PromptResponse(None, prompt, response))
    return examples


def build(
    ctx: StageContext[Any], settings: PretrainSettings, seed: int, answer_format: AnswerFormat, folder: Path
) -> float:
    """Trains and saves the model with its processor in Hugging Face format; resumes bit-exactly from a checkpoint.

    Args:
        ctx: for progress, stopping, and where checkpoints lie.
        settings: how long, on what.
        seed: weights, pictures and order.
        answer_format: how responses are written.
        folder: where to save.

    Returns:
        Mean loss of the last tenth of the steps (nats per token).

    Raises:
        Checkpointed: asked to stop; the next attempt goes on from here.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of float sums, and so every bit, depends on the number of threads
    try:
        return _build(ctx, settings, seed, answer_format, folder)
    finally:
        torch.set_num_threads(threads)


def _build(
    ctx: StageContext[Any], settings: PretrainSettings, seed: int, answer_format: AnswerFormat, folder: Path
) -> float:
    processor = tiny_tokenizer.processor()
    model = tiny_model.build(processor.tokenizer, seed).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, foreach=True
    )
    key = sha256_of({**asdict(settings), "seed": seed, "format": answer_format, "vocabulary": len(processor.tokenizer)})
    checkpoint = ctx.work / f"pretrain-{key[:16]}.pt"
    step, losses = _load(checkpoint, key, model, optimizer)
    bank = _Bank(processor, ctx.root, series(seed))
    while step < settings.steps:
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, settings.steps)
        loss = _loss(model, bank, rows(settings, seed, step, answer_format))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not (loss.isfinite() and norm.isfinite()):
            raise NotFinite(
                f"pretrain: loss {loss.item()}, norm of the gradients {norm.item()} at step {step + 1}: the training "
                "of the built-in model has diverged; lower its learning rate "
                "(builtin://tiny-qwen2.5-vl?learning_rate=…)"
            )
        optimizer.step()
        losses.append(loss.item())
        step += 1
        stopping = ctx.stop.is_set() and step < settings.steps
        if stopping or step % _CHECKPOINT_STEPS == 0:
            _save(checkpoint, key, model, optimizer, step, losses)
        if stopping:
            raise Checkpointed(step)
        ctx.progress("pretrain", step, settings.steps, loss=losses[-1])
    atomic.remove_tree(folder)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes 0600: another stage may run as another user of the group
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail) if tail else math.nan


def _schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, then cosine to the floor."""
    return min(1.0, (step + 1) / _WARM_UP) * (_FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _loss(model: Any, bank: _Bank, batch_rows: list[PromptResponse]) -> torch.Tensor:
    """Mean cross-entropy over the response tokens of the batch."""
    batch = bank.batch(batch_rows)
    hidden = model.model(**batch.inputs, use_cache=False).last_hidden_state[:, :-1]
    targets = batch.labels[:, 1:]
    mask = targets != -100
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[mask]), targets[mask])


def _save(path: Path, key: str, model: Any, optimizer: Any, step: int, losses: list[float]) -> None:
    state = {
        "key": key,
        "step": step,
        "losses": losses,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    with atomic.atomic_file(path) as stream:
        torch.save(state, stream)


def _load(path: Path, key: str, model: Any, optimizer: Any) -> tuple[int, list[float]]:
    """Takes up a checkpoint; one that cannot be read, or is of other settings, is passed over."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, zlib.error):
        return 0, []
    if not isinstance(state, dict) or state.get("key") != key:
        return 0, []
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"]), list(state["losses"])
