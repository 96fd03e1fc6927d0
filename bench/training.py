"""What the shortcuts through transformers' vision-language models are worth in training, on this computer.

    make bench NAME=training        # some minutes on two cores

Forward and backward pass of one batch, one thread, with the shortcuts (`medgr2_jobs.models.patches.qwen_vl`) and
without; both ways alternate, and the ratio is the median over the pairs of CPU seconds. Two models: the quickstart's,
and a random one of 58 M parameters in Qwen2.5-VL-3B's proportions with 448 x 448 pictures. As SFT sees them, every row
of a batch has a picture of its own; as GRPO sees them, the completions of a prompt share one. That both ways give the
same is tested (tests/unit/jobs/models/patches/test_qwen_vl.py).

Then what TRL does with a GRPO batch before that: it prepares every picture, and every prompt around it, twice for every
completion, unless pictures are kept (`medgr2_jobs.models.patches.pixel_cache`) and prompts shared
(`medgr2_jobs.models.patches.repeated_prompts`), each with its test in tests/unit/jobs/models/patches.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image

from bench import _models as models
from medgr2_jobs.data import synthetic_images
from medgr2_jobs.models import vlm
from medgr2_jobs.models.patches import pixel_cache, repeated_prompts
from medgr2_jobs.models.tiny import model as tiny_model
from medgr2_jobs.models.tiny import tokenizer as tiny_tokenizer
from medgr2_jobs.models.vlm import PromptResponse
from medgr2_jobs.store.images import ImageStore

#: name → (model, rows, rows that share a picture, pairs)
CASES = {
    "tiny, SFT": ("tiny", 32, 1, 20),
    "tiny, GRPO": ("tiny", 64, 8, 12),
    "58 M, SFT": ("mid", 4, 1, 3),
    "58 M, GRPO": ("mid", 8, 8, 3),
}


def step(model: Any, batch: vlm.Batch) -> None:
    """One forward and backward pass."""
    model.zero_grad()
    logprobs, mask, _ = vlm.response_logprobs(model, batch)
    (-logprobs.sum() / mask.sum()).backward()


def pair(model: Any, ways: models.Ways, batch: vlm.Batch, *, short_first: bool) -> float:
    """How many times the processor time of the short way the long one takes."""
    seconds = {}
    for short in (short_first, not short_first):
        ways.take(short=short)
        began = time.process_time()
        step(model, batch)
        seconds[short] = time.process_time() - began
    ways.take(short=True)
    return seconds[False] / seconds[True]


def pictures(root: Path, name: str, count: int) -> tuple[Any, vlm.Encoder, list[str]]:
    """A model, its encoder, and the names of so many different pictures."""
    folder, store = root / name, ImageStore(root)
    if name == "tiny":
        processor = tiny_tokenizer.processor()
        tiny_model.build(processor.tokenizer, 0).save_pretrained(folder)
        processor.save_pretrained(folder)
        drawn = [synthetic_images.draw(synthetic_images.attributes(0, index), 0, index) for index in range(count)]
    else:
        models.build(folder, models.MID)
        drawn = noise(count, 0)
    encoder = vlm.Encoder(vlm.load_processor(folder), store)
    return vlm.load_model(folder, train=True), encoder, [store.add(picture, 10**6).sha256 for picture in drawn]


def noise(count: int, seed: int) -> list[Image.Image]:
    """Different pictures of 448 x 448."""
    made = np.random.default_rng(seed)
    return [Image.fromarray(made.integers(0, 255, (448, 448, 3), np.uint8)) for _ in range(count)]


def preparing(root: Path, pairs: int) -> list[float]:
    """How many times the processor time of preparing GRPO batches (64 completions of 8 prompts) not keeping takes."""
    models.build(root / "mid", models.MID)
    ratios = []
    for index in range(pairs):
        batch = [picture for picture in noise(8, index) for _ in range(8)]
        seconds = {}
        for kept in (True, False) if index % 2 else (False, True):
            processor = vlm.load_processor(root / "mid")
            prepare = (pixel_cache.apply(processor, vlm.device()) if kept else processor).image_processor
            began = time.process_time()
            for _ in range(2):
                prepare(images=batch, return_tensors="pt")
            seconds[kept] = time.process_time() - began
        ratios.append(seconds[False] / seconds[True])
    return ratios


def sharing(root: Path, pairs: int) -> list[float]:
    """How many times the processor time of preparing the quickstart's GRPO batches (256 completions of 32 prompts,
    pictures kept) not sharing takes."""
    pictures(root, "tiny", 0)
    ratios = []
    for index in range(pairs):
        batch = [
            (
                [synthetic_images.draw(synthetic_images.attributes(index, at), index, at)],
                f"What does the image show? {'a cyst ' * at}",
            )
            for at in range(32)
        ]
        rows = [row for row in batch for _ in range(8)]
        seconds = {}
        for shared in (True, False) if index % 2 else (False, True):
            processor = pixel_cache.apply(vlm.load_processor(root / "tiny", padding_side="left"), vlm.device())
            processor = repeated_prompts.apply(processor, vlm.device()) if shared else processor
            images, texts = [row[0] for row in rows], [f"{processor.image_token}{row[1]}" for row in rows]
            began = time.process_time()
            for _ in range(2):
                processor(images=images, text=texts, padding=True, return_tensors="pt")
            seconds[shared] = time.process_time() - began
        ratios.append(seconds[False] / seconds[True])
    return ratios


def main() -> None:
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    done = 0
    for case, (name, rows, shared, pairs) in CASES.items():
        with tempfile.TemporaryDirectory() as root:
            model, encoder, names = pictures(Path(root), name, rows // shared)
            batch = encoder.batch(
                [
                    PromptResponse(
                        names[row // shared], "What does the image show?", f"{'a cyst ' * (1 + row % 3)}here"
                    )
                    for row in range(rows)
                ]
            )
            ways = models.Ways(model)
            pair(model, ways, batch, short_first=True)  # warm up
            ratios = [pair(model, ways, batch, short_first=bool(index % 2)) for index in range(pairs)]
        done += pairs
        figures[case] = round(float(np.median(ratios)), 3)
        figures[f"{case}, least"] = round(min(ratios), 3)
        print(f"{case}: {figures[case]}x, {rows} rows, {rows // shared} pictures, {pairs} pairs")
    for case, measure in (("pictures of a GRPO batch", preparing), ("prompts of a GRPO batch", sharing)):
        with tempfile.TemporaryDirectory() as root:
            ratios = measure(Path(root), pairs=5)
        done += len(ratios)
        figures[case] = round(float(np.median(ratios)), 3)
        figures[f"{case}, least"] = round(min(ratios), 3)
        print(f"{case}: {figures[case]}x, {len(ratios)} pairs")
    print(json.dumps({"name": "training", "figures": figures, "n": done, "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
