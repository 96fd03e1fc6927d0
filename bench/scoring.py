"""How much faster image-grouped scoring is than plain batches, and how far their scores differ.

python -m bench.scoring

A random model of 58 M parameters in Qwen2.5-VL-3B's proportions, 256 tokens an image, one thread; its tokenizer has a
token for each word, as a real one has. "64, bytes" is the case with a token for each byte: texts four times as long
beside the same image. "a group" are eight completions of one prompt, as GRPO has them. Plain: batches of 16
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
from collections.abc import Callable, Iterable
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

#: case → (images, prompts on each, answers to each, repeats)
CASES = {
    "1": (6, 1, 1, 9),
    "5": (2, 5, 1, 5),
    "64": (1, 64, 1, 3),
    "64, bytes": (1, 64, 1, 1),
    "a group": (2, 1, 8, 3),
}
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


def questions(images: list[str], prompts: int, answers: int = 1) -> list[PromptResponse]:
    """Rows of unequal length: questions with options, answers with a rationale."""
    return [
        PromptResponse(
            image,
            f"Finding {prompt}? {', '.join(['cyst', 'mass', 'plaque', 'nodule'][: 2 + prompt % 3])}",
            f"<think>The marks look like {'small ' * ((prompt + answer) % 4)}a cyst.</think><answer>{word}</answer>",
        )
        for image in images
        for prompt in range(prompts)
        for answer, word in enumerate(
            ("cyst", "mass", "plaque", "nodule", "a cyst", "a mass", "cysts", "none")[:answers]
        )
    ]


def timed(run: Callable[[], np.ndarray]) -> tuple[np.ndarray, float, float]:
    """What a run returns, its CPU seconds and its wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    found = run()
    return found, time.process_time() - cpu, time.perf_counter() - wall


def _figures(case: str, rows: int, cpu: np.ndarray, wall: np.ndarray) -> dict[str, float]:
    """What a case says: how many times the seconds of the grouped way the others take."""
    ratios, clock = cpu[:, :2] / cpu[:, 2:], wall[:, :2] / wall[:, 2:]
    figures: dict[str, float] = {}
    for index, way in enumerate(WAYS[:2]):
        name = "ratio" if way == "plain" else f"ratio_{way}"
        figures[f"{name}_{case}"] = round(float(np.median(ratios[:, index])), 3)
        figures[f"{name}_{case}_least"] = round(float(ratios[:, index].min()), 3)
        figures[f"{name}_{case}_wall"] = round(float(np.median(clock[:, index])), 3)
    for way, seconds in zip(WAYS, np.median(cpu, axis=0), strict=True):
        figures[f"{way}_per_cpu_second_{case}"] = round(rows / float(seconds), 2)
    return figures


class Reader:
    """The model with one tokenizer, and what it was shown."""

    def __init__(self, root: Path, name: str, corpus: Iterable[str]) -> None:
        models.build(root / name, models.MID, corpus=corpus)
        self.store = ImageStore(root)
        noise = np.random.default_rng(0)
        pictures = [Image.fromarray(noise.integers(0, 255, (448, 448, 3), np.uint8)) for _ in range(6)]
        self.images = [self.store.add(picture, 10**6).sha256 for picture in pictures]
        self.encoder = vlm.Encoder(vlm.load_processor(root / name), self.store)
        head = RewardHead.LAST_TOKEN_AND_LIKELIHOOD
        self.model = RewardModel.fresh(root / name, head, Grades(), base="", train=False)
        torch.nn.init.normal_(self.model.head.output.weight, std=0.2)
        self.ways = models.Ways(self.model)
        plain(self.model, self.encoder, questions(self.images, 1))  # warm up, and preprocess every image

    def run(self, case: str) -> tuple[dict[str, float], dict[str, float]]:
        """The figures of a case, and how far each way's scores are from the grouped ones."""
        pictured, prompts, answers, repeats = CASES[case]
        rows = questions(self.images[:pictured], prompts, answers)
        taken, furthest = [], dict.fromkeys(WAYS[:2], 0.0)
        for repeat in range(repeats):
            done = {}
            for way in WAYS if repeat % 2 == 0 else WAYS[::-1]:
                self.ways.take(short=way != "plain")
                score = scorer.score if way == "grouped" else plain
                done[way] = timed(lambda score=score: score(self.model, self.encoder, rows))
            for way, before in furthest.items():
                furthest[way] = max(before, float(np.abs(done["grouped"][0] - done[way][0]).max()))
            taken.append([done[way][1:] for way in WAYS])
        cpu, wall = np.moveaxis(np.array(taken), 2, 0)  # (repeats, ways) each
        figures = _figures(case, len(rows), cpu, wall)
        tokens = [len(self.encoder.prompt_ids(row) + self.encoder.response_ids(row.response)) for row in rows]
        figures[f"tokens_{case}"] = round(float(np.mean(tokens)), 1)
        print(
            f"{case:>9}: {len(rows)} rows of {figures[f'tokens_{case}']} tokens on {pictured} images, {repeats} times: "
            f"{figures[f'ratio_{case}']}x, {figures[f'ratio_lean_{case}']}x with the shortcuts"
        )
        return figures, furthest


def main() -> None:
    torch.set_num_threads(1)
    scorer.SCORE_MIN, scorer.SCORE_MAX = -np.inf, np.inf
    rows = questions([""], 64)
    words = [text for row in rows for text in (row.prompt, row.response)]
    figures: dict[str, float] = {}
    worst = dict.fromkeys(WAYS[:2], 0.0)
    with tempfile.TemporaryDirectory() as name:
        for tokenizer, corpus in (("words", words), ("bytes", [])):
            reader = Reader(Path(name), tokenizer, corpus)
            for case in CASES:
                if case.endswith("bytes") is (tokenizer == "bytes"):
                    found, furthest = reader.run(case)
                    figures |= found
                    worst = {way: max(worst[way], furthest[way]) for way in worst}
        figures["parameters"] = sum(value.numel() for value in reader.model.parameters())
    figures |= {f"max_difference_{way}": value for way, value in worst.items()}
    figures["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    scored = sum(pictured * prompts * answers for pictured, prompts, answers, _ in CASES.values())
    print(json.dumps({"name": "scoring", "figures": figures, "n": scored, "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
