"""What each step of the loop is worth: five seeds, seven arms, paired bootstrap over the benchmark's items.

    make bench NAME=effect                         # five fresh seeds, 25 to 40 minutes on two cores
    python -m bench.effect --seeds 1 --first 900   # one seed

Every arm is an ordinary cycle made from `examples/quickstart.yaml`; the arms of a seed share a workspace, so they share
what is equal. Seeds run two at a time. Settings of the quickstart were chosen on the validation split of other seeds
(docs/measurements.md); nothing is chosen here.

| arm | cycle |
|---|---|
| a seed | SFT on the reward model's own gold items alone |
| b raw | SFT on the seed and all candidates of round 1 |
| c rewarded | SFT on the seed and what R kept of round 1 |
| d +GRPO | c, then GRPO |
| e round 2 | after the second round |
| f matched | SFT steps of both rounds spent on round 1's kept data, no GRPO |
| g SFT time | c plus SFT on the same data for the time of GRPO |
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from bench._cycles import Cycle

FIRST_SEED, SEEDS = 710, 5
#: (first arm, second arm, what the difference answers)
CONTRASTS = (
    ("c", "b", "filtering by R against raw candidates"),
    ("d", "c", "GRPO against what it started from"),
    ("d", "g", "GRPO against SFT of the same time"),
    ("e", "a", "two rounds of the loop against the seed alone"),
    ("e", "d", "the second round"),
    ("e", "f", "two rounds against the same SFT steps in round 1"),
)
_OFF = [{"name": name, "enabled": False} for name in ("grpo", "preferences", "report")]


def arms(workspace: Path, seed: int) -> dict[str, Any]:
    """Runs the cycles of one seed; returns what each arm got right, and figures of the loop."""
    full = Cycle(workspace, seed, "full").run()
    steps = [full.manifest("sft", t)["counters"]["steps"] for t in (1, 2)]
    seconds = {name: full.seconds(name, 1) for name in ("sft", "grpo")}  # both run on one thread
    more = round(steps[0] * seconds["grpo"] / seconds["sft"])
    once = {"iterations": 1, "stages": _OFF}

    def sft(count: float) -> dict[str, Any]:
        return {**once, "policy": {"sft": {"trainer": {"max_steps": int(count)}}}}

    keep_none = {"curation": {"selection": {"strategy": "TopK", "k": 0}}}
    keep_all = {"curation": {"selection": {"strategy": "All"}}}
    others = {
        "a": Cycle(workspace, seed, "seed", **once, **keep_none),
        "b": Cycle(workspace, seed, "raw", **once, **keep_all),
        "f": Cycle(workspace, seed, "matched", **sft(sum(steps))),
        "g": Cycle(workspace, seed, "sfttime", **sft(steps[0] + more)),
    }
    right = {arm: cycle.run().correct(1, "sft") for arm, cycle in others.items()}
    right |= {
        "base": full.correct(0, "base"),
        "c": full.correct(1, "sft"),
        "d": full.correct(1, "grpo"),
        "e": full.correct(2, "grpo"),
    }
    grpo = [full.manifest("grpo", t)["counters"] for t in (1, 2)]
    return {
        "right": right,
        "reward": [(c["reward_first"], c["reward_last"]) for c in grpo],
        "steps": {"c": steps[0], "e": steps[1], "f": sum(steps), "g": steps[0] + more},
        "seconds": seconds,
    }


def main() -> int:
    """Runs the benchmark and prints its tables and its line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--first", type=int, default=FIRST_SEED)
    parser.add_argument("--workspace", type=Path, default=None, help="kept; default: a temporary folder")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.workspace or Path(temporary)
        seeds = range(options.first, options.first + options.seeds)
        with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
            results = dict(zip(seeds, pool.map(lambda seed: arms(root / str(seed), seed), seeds), strict=True))

    return _tell(results, (time.monotonic() - started) / 60)


def _tell(results: dict[int, dict[str, Any]], minutes: float) -> int:
    """Prints accuracy by arm, the paired differences, and the line of JSON."""
    from medgr2_api.percent import percent
    from medgr2_jobs.report.compare import paired_difference

    names = ("base", "a", "b", "c", "d", "e", "f", "g")
    print("| seed | n | " + " | ".join(names) + " |\n|" + "---|" * (len(names) + 2))
    for seed, result in results.items():
        cells = [percent(result["right"][name][0].mean()) for name in names]
        print(f"| {seed} | {len(result['right']['a'][0])} | " + " | ".join(cells) + " |")
    mean = {name: float(np.mean([result["right"][name][0].mean() for result in results.values()])) for name in names}
    figures: dict[str, Any] = {"accuracy": {name: round(value, 4) for name, value in mean.items()}}

    columns = ["contrast", *map(str, results), "all seeds", "seeds as the sample", "reading", "question"]
    print("\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for first, second, question in CONTRASTS:
        each = [_pair(seed, result["right"], first, second) for seed, result in results.items()]
        cells = [paired_difference(*pair, 0) for pair in each]
        pooled = paired_difference(*(np.concatenate(parts) for parts in zip(*each, strict=True)), 0)
        reading = "within noise" if pooled[1] <= 0 <= pooled[2] else "positive" if pooled[0] > 0 else "negative"
        of_seeds = _over_seeds([cell[0] for cell in cells])
        told = [f"{first} − {second}", *map(_interval, [*cells, pooled, of_seeds]), reading, question]
        print("| " + " | ".join(told) + " |")
        figures[f"{first}-{second}"] = [round(float(value), 4) for value in pooled]
        figures[f"{first}-{second} seeds as the sample"] = [round(value, 4) for value in of_seeds]
        figures[f"{first}-{second} seeds above 0"] = sum(cell[1] > 0 for cell in cells)

    print(
        "\nmean reward under GRPO, first → last fifth of the steps, rounds 1 and 2; SFT steps; CPU seconds of round 1:"
    )
    for seed, result in results.items():
        rewards = ", ".join(f"{first:.3f} → {last:.3f}" for first, last in result["reward"])
        print(f"- {seed}: {rewards}; {result['steps']}; {result['seconds']}")
    print(
        "\nThe effects of GRPO depend on two choices of the quickstart: the scripted generator has blind spots, and R "
        "starts from a model that already knows the words of the answers, which the policy's base does not."
    )
    figures["rounds in which the reward rose"] = sum(b > a for result in results.values() for a, b in result["reward"])
    figures["minutes"] = round(minutes, 1)
    n = sum(len(result["right"]["a"][0]) for result in results.values())
    print(json.dumps({"name": "effect", "figures": figures, "n": n, "cores": os.cpu_count()}))
    return 0


def _pair(seed: int, right: dict[str, Any], first: str, second: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both arms item by item, the one to subtract first, and each item's cluster: its image within its seed."""
    images = np.char.add(f"{seed}/", right[first][1].astype(str))
    return right[second][0], right[first][0], images


def _over_seeds(differences: list[float]) -> tuple[float, float, float]:
    """Their mean, and the bounds of its 95 % interval by Student's t: what other seeds would say, not other questions.

    One seed says nothing of others: its bounds are those of any difference of accuracies.
    """
    from scipy import stats

    mean, n = float(np.mean(differences)), len(differences)
    if n == 1:
        return mean, -1.0, 1.0
    half = float(stats.t.ppf(0.975, n - 1) * stats.sem(differences))
    return mean, mean - half, mean + half


def _interval(difference: tuple[float, float, float]) -> str:
    value, low, high = (100 * part for part in difference)
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


if __name__ == "__main__":
    sys.exit(main())
