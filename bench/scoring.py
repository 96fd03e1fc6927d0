"""How much faster image-grouped scoring is than plain batches, and how far their scores differ.

python -m bench.scoring

A random model of 58 M parameters in Qwen2.5-VL-3B's proportions, 256 tokens an image, one thread. Plain: batches of 16
in the given order, the image beside every row, through transformers as it is. Lean: the same with the project's
shortcuts through transformers, which see an image once in each batch. The ways alternate, and a ratio is the median
over the repeats of CPU seconds, which other processes on the machine disturb less than the clock. Images are
preprocessed beforehand for all. Scores are compared before clipping.
"""

from __future__ import annotations

import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image

from bench import _models as models
from medgr2_api.reward_model import Grades, RewardHead
from medgr2_jobs.models import vlm
from medgr2_jobs.models.vlm import PromptResponse
from medgr2_jobs.reward import scorer
from medgr2_jobs.reward.model import RewardModel
from medgr2_jobs.store.images import ImageStore

#: questions per image → (images, repeats)
CASES = {1: (6, 5), 5: (2, 3), 64: (1, 1)}
WAYS = ("plain", "lean", "grouped")
PLAIN_BATCH = 16


@torch.no_grad()
def plain(model: RewardModel, encoder: vlm.Encoder, rows: list[PromptResponse]) -> np.ndarray:
    """Scores as any trainer's evaluation loop would make them."""
    found: list[float] = []
    for piece in vlm.chunks(rows, PLAIN_BATCH):
        batch = encoder.batch(piece)
        found += model(labels=batch.labels, **batch.inputs)["scores"].tolist()
    return np.array(found)


def questions(images: list[str], count: int) -> list[PromptResponse]:
    """Rows of unequal length: questions with options, answers with a rationale."""
    return [
        PromptResponse(
            image,
            f"Finding {number}? {', '.join(['cyst', 'mass', 'plaque', 'nodule'][: 2 + number % 3])}",
            f"<think>The marks look like {'small ' * (number % 4)}a cyst.</think><answer>cyst</answer>",
        )
        for image in images
        for number in range(count)
    ]


def timed(run: Callable[[], np.ndarray]) -> tuple[np.ndarray, float, float]:
    """What a run returns, its CPU seconds and its wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    found = run()
    return found, time.process_time() - cpu, time.perf_counter() - wall


def _figures(count: int, rows: int, cpu: np.ndarray, wall: np.ndarray) -> dict[str, float]:
    """What so many questions an image say: how many times the seconds of the grouped way the others take."""
    ratios, clock = cpu[:, :2] / cpu[:, 2:], wall[:, :2] / wall[:, 2:]
    figures: dict[str, float] = {}
    for index, way in enumerate(WAYS[:2]):
        name = "ratio" if way == "plain" else f"ratio_{way}"
        figures[f"{name}_{count}"] = round(float(np.median(ratios[:, index])), 3)
        figures[f"{name}_{count}_least"] = round(float(ratios[:, index].min()), 3)
        figures[f"{name}_{count}_wall"] = round(float(np.median(clock[:, index])), 3)
    for way, seconds in zip(WAYS, np.median(cpu, axis=0), strict=True):
        figures[f"{way}_per_cpu_second_{count}"] = round(rows / float(seconds), 2)
    return figures


def main() -> None:
    torch.set_num_threads(1)
    scorer.SCORE_MIN, scorer.SCORE_MAX = -np.inf, np.inf
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        models.build(root / "model", models.MID)
        store = ImageStore(root)
        noise = np.random.default_rng(0)
        pictures = [Image.fromarray(noise.integers(0, 255, (448, 448, 3), np.uint8)) for _ in range(6)]
        images = [store.add(picture, 10**6).sha256 for picture in pictures]
        encoder = vlm.Encoder(vlm.load_processor(root / "model"), store)
        model = RewardModel.fresh(root / "model", RewardHead.LAST_TOKEN_AND_LIKELIHOOD, Grades(), base="", train=False)
        torch.nn.init.normal_(model.head.output.weight, std=0.2)
        ways = models.Ways(model)
        figures: dict[str, float] = {"parameters": sum(value.numel() for value in model.parameters())}
        plain(model, encoder, questions(images, 1))  # warm up, and preprocess every image
        scored, worst = 0, dict.fromkeys(WAYS[:2], 0.0)
        for count, (pictured, repeats) in CASES.items():
            rows = questions(images[:pictured], count)
            taken = []
            for repeat in range(repeats):
                done = {}
                for way in WAYS if repeat % 2 == 0 else WAYS[::-1]:
                    ways.take(short=way != "plain")
                    score = scorer.score if way == "grouped" else plain
                    done[way] = timed(lambda score=score, rows=rows: score(model, encoder, rows))
                for way, before in worst.items():
                    worst[way] = max(before, float(np.abs(done["grouped"][0] - done[way][0]).max()))
                taken.append([done[way][1:] for way in WAYS])
            cpu, wall = np.moveaxis(np.array(taken), 2, 0)  # (repeats, ways) each
            figures |= _figures(count, len(rows), cpu, wall)
            scored += len(rows)
            print(f"{count:3d} questions an image, {pictured} images, {repeats} repeats: {figures[f'ratio_{count}']}x")
    figures |= {f"max_difference_{way}": value for way, value in worst.items()}
    figures["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({"name": "scoring", "figures": figures, "n": scored, "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
