"""Which R⁽⁰⁾ answers best about pictures that it has not seen: ways of training it in the quickstart's own setting.

    make bench NAME=reward                      # development seeds 17, 201, 202: settings are chosen on them
    python -m bench.reward --seeds 17 --arms whole adapters

Every arm is the quickstart with other `rewardModel.training`, up to stage score of round 1. Measured are the validation
questions, which a user has too; and what no user has: questions about fresh phantoms, drawn for this, and the truth
about the generator's candidates. R answers a question with the option whose text it scores highest.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bench._cycles import QUICKSTART, Cycle

SEEDS = (17, 201, 202)
PICTURES = 250
_SERIES = 10_000_000  # + seed: the fresh phantoms' series, which no source and no benchmark draws from
_BYTES = 10**9
_OFF = [{"name": name, "enabled": False} for name in ("curate", "sft", "grpo", "evaluate", "preferences", "report")]


def _training(rank: int, rate: float, steps: int = 360) -> dict[str, Any]:
    return {"lora": {"rank": rank}, "learningRate": rate, "trainer": {"max_steps": steps}}


#: Ways of training R⁽⁰⁾; the first is what the others are held against.
ARMS: dict[str, dict[str, Any]] = {
    "whole": _training(0, 1e-3),
    "whole, half the rate": _training(0, 5e-4),
    "whole, half the steps": _training(0, 1e-3, 180),
    "adapters": _training(16, 3e-3),
    "adapters, half the rate": _training(16, 1.5e-3),
    "adapters, twice the rate": _training(16, 6e-3),
    "adapters, rank 64": _training(64, 3e-3),
}


@dataclass(frozen=True)
class Asked:
    """A question about a fresh phantom."""

    image_sha256: str
    question: str
    options: tuple[str, ...]
    answer_index: int
    rationale: str


@dataclass(frozen=True)
class Measured:
    """One R."""

    figures: dict[str, float]
    hits: np.ndarray
    """(N,) right or wrong on each fresh question."""
    images: np.ndarray
    """(N,) its image, within its seed."""


def fresh(root: Path, seed: int) -> list[Asked]:
    """Four questions about each of the fresh phantoms, which are put into the workspace's images."""
    from medgr2_jobs.data import synthetic_images
    from medgr2_jobs.store.images import ImageStore

    images, asked = ImageStore(root), []
    for index in range(PICTURES):
        shown = synthetic_images.attributes(_SERIES + seed, index)
        sha256 = images.add(synthetic_images.draw(shown, _SERIES + seed, index), _BYTES).sha256
        asked += [
            Asked(sha256, question.text, question.options, question.answer_index, question.rationale)
            for question in synthetic_images.questions(_SERIES + seed, index, len(synthetic_images.KINDS))
        ]
    return asked


def measure(root: Path, cycle: Cycle, seed: int) -> Measured:
    """What the R⁽⁰⁾ of a cycle knows."""
    import pyarrow.parquet as pq

    from medgr2_api.presets import resolve
    from medgr2_api.yaml_loader import load_cycle
    from medgr2_jobs.evaluate.rank_statistics import auroc
    from medgr2_jobs.models import vlm
    from medgr2_jobs.reward.model import RewardModel
    from medgr2_jobs.reward.option_scores import option_scores
    from medgr2_jobs.store.images import ImageStore

    def table(stage: str, iteration: int, name: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = pq.read_table(cycle.part(stage, iteration, name)).to_pylist()
        return rows

    folder = cycle.part("reward", 0, "model/reward.json").parent
    spec = resolve(load_cycle(cycle.file).spec)
    encoder = vlm.Encoder(vlm.load_processor(folder), ImageStore(root))
    asked = fresh(root, seed)
    scores = np.array(
        option_scores(RewardModel.load(folder), encoder, asked, [each.rationale for each in asked], spec.answer_format)
    )
    gold = np.array([each.answer_index for each in asked])
    hits = scores.argmax(1) == gold
    truth = {row["triplet_id"]: row["correct"] for row in table("generate", 1, "truth.parquet")}
    of_candidates = table("score", 1, "scores.parquet")
    values = np.array([row["score"] for row in of_candidates])
    right = np.array([truth[row["triplet_id"]] for row in of_candidates])
    keep = values > spec.curation.selection.threshold
    answers = json.loads(cycle.part("reward", 0, "metrics.json").read_text())["new"]["answers"]
    figures = {
        "validation: answers": answers["answer_accuracy"],
        "validation: AUROC": answers["answer_auroc"],
        "fresh: answers": float(hits.mean()),
        "fresh: AUROC": auroc(scores.ravel(), np.eye(scores.shape[1], dtype=bool)[gold].ravel()),
        "candidates: AUROC": auroc(values, right),
        "kept": float(keep.sum()),
        "kept: right": float(right[keep].mean()),
        "CPU seconds": cycle.seconds("reward", 0),
    }
    return Measured(figures, hits.astype(float), np.array([f"{seed}/{each.image_sha256}" for each in asked]))


def main() -> int:
    """Runs the benchmark and prints its tables and its line of JSON."""
    from medgr2_jobs.report.compare import paired_difference

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--workspace", type=Path, default=None, help="kept; default: a temporary folder")
    options = parser.parse_args()
    base = yaml.safe_load(QUICKSTART.read_text())["spec"]["rewardModel"]["baseModel"]
    started, made = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as temporary:
        root = options.workspace or Path(temporary)
        for seed in options.seeds:
            for arm in options.arms:
                changes = {"iterations": 1, "stages": _OFF, "policy": {"baseModel": base}}  # R's base serves for both
                cycle = Cycle(
                    root, seed, f"r{[*ARMS].index(arm)}", **changes, rewardModel={"training": ARMS[arm]}
                ).run()
                made[arm, seed] = measure(root, cycle, seed)
                print(f"{seed}, {arm}: {made[arm, seed].figures}", file=sys.stderr, flush=True)

    names = list(made[options.arms[0], options.seeds[0]].figures)
    print(f"| R⁽⁰⁾ | seed | {' | '.join(names)} |\n|" + "---|" * (len(names) + 2))
    for arm in options.arms:
        for seed in options.seeds:
            cells = [f"{value:.0f}" if value > 1 else f"{value:.3f}" for value in made[arm, seed].figures.values()]
            print(f"| {arm} | {seed} | {' | '.join(cells)} |")

    def pooled(arm: str) -> tuple[np.ndarray, np.ndarray]:
        models = [made[arm, seed] for seed in options.seeds]
        return np.concatenate([model.hits for model in models]), np.concatenate([model.images for model in models])

    first, *others = options.arms
    reference, images = pooled(first)
    figures: dict[str, Any] = {first: round(float(reference.mean()), 4)}
    print(f"\nfresh answers less those of {first!r}, all seeds, in points; 95 %, paired, by image:")
    for arm in others:
        value, low, high = paired_difference(reference, pooled(arm)[0], images, 0)
        print(f"- {arm}: {100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]")
        figures[arm] = [round(each, 4) for each in (value, low, high)]
    figures["minutes"] = round((time.monotonic() - started) / 60, 1)
    print(json.dumps({"name": "reward", "figures": figures, "n": len(reference), "cores": os.cpu_count()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
