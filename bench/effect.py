"""What each step of the loop is worth, and each of its last arrows: paired bootstrap over the benchmark's items.

    make bench NAME=effect                                    # both tables, five fresh seeds
    python -m bench.effect --table arrows --first 900 --seeds 1
    python -m bench.effect --table arrows --arms frozen,+R,+D,both
    python -m bench.effect --table arrows --errors Uniform    # the generator whose errors are tied to no value

Every arm is an ordinary cycle made from `examples/quickstart.yaml`; the arms of a seed share a workspace, so they share
what is equal. Seeds run two at a time. Settings of the quickstart were chosen on the validation split of other seeds
(docs/measurements.md); nothing is chosen here. A round's policy is the one that it releases.

| arm of table steps | cycle |
|---|---|
| a seed | SFT on the reward model's own gold items alone |
| b raw | SFT on the seed and all candidates of round 1 |
| c rewarded | SFT on the seed and what R kept of round 1 |
| d +GRPO | c, then GRPO |
| e round 2 | after the second round |
| f matched | SFT steps of both rounds spent on round 1's kept data, no GRPO |
| g SFT time | c plus SFT on the same data for the time of GRPO |

| arm of table arrows (policy after round 2) | cycle |
|---|---|
| frozen | R⁽⁰⁾ to the end, D_gen as R kept it |
| +R | R retrained on the cross-examined questions |
| +D | D_gen corrected by them |
| both | +R and +D: the quickstart |
| longer R | frozen, R⁽⁰⁾ trained for as many steps as the retrained one |
| more SFT | frozen, the time of both arrows spent on SFT steps |
| literal | the quickstart with every choice of `preset: Paper` |
| student | both, and what round 1's student writes for .7 of round 2's tasks, if its gate lets it |
| relabelled | both without new candidates: an expert vetoes all of round 2's, so SFT has round 1's, corrected |
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench._cycles import Cycle, merge, nested

FIRST_SEED, SEEDS = 720, 5

#: Right or wrong on each item, and the item's image.
Right = tuple[np.ndarray, np.ndarray]


@dataclass
class Arms:
    """What the arms of one seed got right, and figures of the loop, one line each."""

    right: dict[str, Right]
    notes: list[str]


@dataclass(frozen=True)
class Table:
    """Arms that are compared."""

    names: tuple[str, ...]
    contrasts: tuple[tuple[str, str, str], ...]
    """(first arm, second arm, what the difference answers)."""
    run: Callable[[Path, int, Mapping[str, Any], Collection[str]], Arms]
    """(workspace, seed, changes of every cycle, arms asked for) → what the arms got right."""
    note: str

    def of(self, arms: Collection[str]) -> Table:
        """The table with these arms alone, and the contrasts between them."""
        names = tuple(name for name in self.names if name in arms)
        contrasts = tuple(each for each in self.contrasts if {*each[:2]} <= {*names})
        return replace(self, names=names, contrasts=contrasts)


def steps(workspace: Path, seed: int, common: Mapping[str, Any], arms: Collection[str]) -> Arms:
    """Runs the arms of table steps."""

    def cycle(arm: str, **changes: Any) -> Cycle:
        return Cycle(workspace, seed, arm, **_with(common, changes))

    full = cycle("full").run()
    counts = [full.manifest("sft", t)["counters"]["steps"] for t in (1, 2)]
    seconds = {name: full.seconds(name, 1) for name in ("sft", "grpo")}  # both run on one thread
    more = round(counts[0] * seconds["grpo"] / seconds["sft"])
    once = {"iterations": 1, "stages": [{"name": name, "enabled": False} for name in ("grpo", "report")]}

    keep_none = {"curation": {"selection": {"strategy": "TopK", "k": 0}}}
    keep_all = {"curation": {"selection": {"strategy": "All"}}}
    others = {
        "a": cycle("seed", **once, **keep_none),
        "b": cycle("raw", **once, **keep_all),
        "f": cycle("matched", **once, **_sft(sum(counts))),
        "g": cycle("sfttime", **once, **_sft(counts[0] + more)),
    }
    right = {arm: each.run().correct(1, "sft") for arm, each in others.items() if arm in arms}
    right |= {
        "base": full.correct(0, "base"),
        "c": full.correct(1, "sft"),
        "d": full.correct(1),
        "e": full.correct(2),
    }
    used = {"c": counts[0], "e": counts[1], "f": sum(counts), "g": counts[0] + more}
    return Arms(right, [f"SFT steps {used}; CPU seconds of round 1 {seconds}", *_grpo(full)])


def arrows(workspace: Path, seed: int, common: Mapping[str, Any], arms: Collection[str]) -> Arms:
    """Runs the arms of table arrows."""
    from medgr2_api.cycle import Preset
    from medgr2_api.presets import PRESETS

    def cycle(arm: str, **changes: Any) -> Cycle:
        return Cycle(workspace, seed, arm, **_with(common, changes))

    frozen_r = {"stages": [{"name": "reward", "enabled": False}]}
    retrained = {"rewardModel": {"retrainOn": "CrossExamined", "retrainFrom": "Base"}}
    as_kept, corrected = ({"curation": {"correct": correct}} for correct in (False, True))
    both = cycle("both", **retrained, **corrected).run()
    spent = both.seconds("relabel", 1) + both.seconds("reward", 1)
    count = both.manifest("sft", 1)["counters"]["steps"]
    more = round(count * spent / both.seconds("sft", 1) / 2)  # in each of the two rounds
    training = both.manifest("reward", 1)["parameters"]["training"]
    length = {**training["trainer"], **training["retrainTrainer"]}["max_steps"]
    longer = {"rewardModel": {"training": {"trainer": {"max_steps": length}}}}
    runs = {
        "frozen": cycle("frozen", **frozen_r, **as_kept),
        "+R": cycle("retrained", **retrained, **as_kept),
        "+D": cycle("corrected", **frozen_r, **corrected),
        "both": both,
        "longer R": cycle("longer", **frozen_r, **as_kept, **longer),
        "more SFT": cycle("moresft", **frozen_r, **as_kept, **_sft(count + more)),
        "literal": cycle("literal", **nested(PRESETS[Preset.PAPER])),
    }
    if "student" in arms:
        runs["student"] = cycle("student", **retrained, **corrected, generator={"distillation": {}})
    if "relabelled" in arms:
        runs["relabelled"] = cycle("relabelled", **retrained, **corrected, reviews=[_vetoed(both, 2)])
    runs = {arm: each for arm, each in runs.items() if arm in arms}
    right = {arm: each.run().correct(2) for arm, each in runs.items()}
    notes = [
        f"SFT steps {count}, with more SFT {count + more}; CPU seconds of the arrows {spent:.0f}",
        f"the retrained R ({length} steps) was {'' if both.manifest('reward', 1)['promoted'] else 'not '}taken over",
        "released after round 2: " + ", ".join(f"{arm} {each.released(2)}" for arm, each in runs.items()),
        *_grpo(both),
        *(_student(runs["student"]) if "student" in runs else []),
    ]
    return Arms(right, notes)


STEPS = Table(
    ("base", "a", "b", "c", "d", "e", "f", "g"),
    (
        ("c", "b", "filtering by R against raw candidates"),
        ("d", "c", "GRPO against what it started from"),
        ("d", "g", "GRPO against SFT of the same time"),
        ("e", "a", "two rounds of the loop against the seed alone"),
        ("e", "d", "the second round"),
        ("e", "f", "two rounds against the same SFT steps in round 1"),
    ),
    steps,
    "The effects of GRPO depend on two choices of the quickstart: the scripted generator has blind spots, and R "
    "starts from a model that already knows the words of the answers, which the policy's base does not.",
)
ARROWS = Table(
    ("frozen", "+R", "+D", "both", "longer R", "more SFT", "literal", "student", "relabelled"),
    (
        ("+R", "frozen", "the retrained R"),
        ("+D", "frozen", "the corrected D_gen"),
        ("both", "frozen", "both arrows"),
        ("both", "+D", "the retrained R where D_gen is corrected"),
        ("both", "+R", "the corrected D_gen where R is retrained"),
        ("both", "longer R", "both arrows against R⁽⁰⁾ trained as long"),
        ("both", "more SFT", "both arrows against SFT of the same time"),
        ("both", "literal", "both arrows against the paper's own loop"),
        ("student", "frozen", "both arrows and a student"),
        ("student", "both", "a student beside the first generator"),
        ("student", "relabelled", "the student's candidates, and the first generator's, against none"),
        ("both", "relabelled", "the first generator's candidates against none"),
        ("relabelled", "frozen", "the corrected questions of round 1 against new ones"),
    ),
    arrows,
    "What the arrows are worth depends on the generator: its claims tell of errors by value, not of uniform ones.",
)
TABLES = {"steps": STEPS, "arrows": ARROWS}


def main() -> int:
    """Runs the benchmark and prints its tables and its line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=TABLES, action="append", help="default: all")
    parser.add_argument("--errors", choices=("ByValue", "Uniform"), default="ByValue", help="of the generator")
    parser.add_argument("--arms", default="", help="with commas between them; default: all of the table")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--first", type=int, default=FIRST_SEED)
    parser.add_argument("--workspace", type=Path, default=None, help="kept; default: a temporary folder")
    options = parser.parse_args()
    common = {"generator": {"scripted": {"errors": options.errors}}}
    figures: dict[str, Any] = {"errors": options.errors}
    started = time.monotonic()
    n = 0
    with tempfile.TemporaryDirectory() as temporary:
        root = options.workspace or Path(temporary)
        seeds = range(options.first, options.first + options.seeds)
        for name in options.table or TABLES:
            table = TABLES[name]
            if options.arms:
                arms = options.arms.split(",")
                if unknown := {*arms} - {*table.names}:
                    parser.error(f"table {name} has no arm {', '.join(sorted(unknown))}")
                table = table.of(arms)
            with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
                made = pool.map(partial(_run, table, root, common), seeds)
                results = dict(zip(seeds, made, strict=True))
            minutes = (time.monotonic() - started) / 60
            figures[name] = {**_tell(table, results), "minutes so far": round(minutes, 1)}
            print(f"\n{minutes:.0f} minutes so far")
            n = sum(len(result.right[table.names[0]][0]) for result in results.values())
    print(json.dumps({"name": "effect", "figures": figures, "n": n, "cores": os.cpu_count()}))
    return 0


def _run(table: Table, root: Path, common: Mapping[str, Any], seed: int) -> Arms:
    return table.run(root / str(seed), seed, common, table.names)


def _tell(table: Table, results: dict[int, Arms]) -> dict[str, Any]:
    """Prints accuracy by arm, the paired differences, and what is known of the loop; returns the figures."""
    from medgr2_api.percent import percent
    from medgr2_jobs.report.compare import paired_difference

    names = table.names
    print("\n| seed | n | " + " | ".join(names) + " |\n|" + "---|" * (len(names) + 2))
    for seed, result in results.items():
        cells = [percent(result.right[name][0].mean()) for name in names]
        print(f"| {seed} | {len(result.right[names[0]][0])} | " + " | ".join(cells) + " |")
    mean = {name: float(np.mean([result.right[name][0].mean() for result in results.values()])) for name in names}
    figures: dict[str, Any] = {"accuracy": {name: round(value, 4) for name, value in mean.items()}}

    columns = ["contrast", *map(str, results), "all seeds", "seeds as the sample", "reading", "question"]
    print("\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for first, second, question in table.contrasts:
        each = [_pair(seed, result.right, first, second) for seed, result in results.items()]
        differences = [paired_difference(*pair, 0) for pair in each]
        pooled = paired_difference(*(np.concatenate(parts) for parts in zip(*each, strict=True)), 0)
        reading = "within noise" if pooled[1] <= 0 <= pooled[2] else "positive" if pooled[0] > 0 else "negative"
        of_seeds = _over_seeds([difference[0] for difference in differences])
        told = [f"{first} − {second}", *map(_interval, [*differences, pooled, of_seeds]), reading, question]
        print("| " + " | ".join(told) + " |")
        figures[f"{first}-{second}"] = [round(float(value), 4) for value in pooled]
        figures[f"{first}-{second} seeds as the sample"] = [round(value, 4) for value in of_seeds]
        figures[f"{first}-{second} seeds above 0"] = sum(difference[1] > 0 for difference in differences)

    print()
    for seed, result in results.items():
        for note in result.notes:
            print(f"- {seed}: {note}")
    print("\n" + table.note)
    return figures


def _grpo(cycle: Cycle) -> list[str]:
    """Whether the reward rose in each round's GRPO, where it ran."""
    told = []
    for t in (1, 2):
        counters = cycle.manifest("grpo", t)["counters"]
        if "reward_first" in counters:
            told.append(
                f"mean reward of GRPO, first → last fifth of the steps of round {t}: "
                f"{counters['reward_first']:.3f} → {counters['reward_last']:.3f}"
            )
        else:
            told.append(f"GRPO did not run in round {t}")
    return told


def _student(cycle: Cycle) -> list[str]:
    """Whether the student takes tasks over, and what each generator wrote."""
    probe = json.loads(cycle.part("report", 2, "students.json").read_text())
    told = [f"student of round 1: {row['decision']}" for row in probe if row["iteration"] == 1 and row["decision"]]
    with cycle.part("report", 2, "tables/generators.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["iteration"] == "2"]
    return told + [
        f"round 2, {row['generator']}: {row['candidates']} candidates, of them kept {float(row['kept']):.3f}, "
        f"of its triplets right {float(row['right']):.3f}"
        for row in rows
    ]


def _vetoed(cycle: Cycle, iteration: int) -> dict[str, Any]:
    """An expert's review that vetoes every candidate of an iteration, as `reviews` of a spec names it."""
    from medgr2_jobs.review import import_review
    from medgr2_jobs.store.rows.candidates import Candidate
    from medgr2_jobs.store.tables import read

    candidates = read(cycle.part("generate", iteration, "candidates.parquet"), Candidate)
    vetoes = [import_review.ReviewDecision(row.triplet_id, veto=True) for row in candidates]
    sha256 = import_review.save(cycle.workspace, import_review.check(vetoes, candidates, "all vetoed"))
    return {"iteration": iteration, "sha256": sha256}


def _sft(steps: float) -> dict[str, Any]:
    return {"policy": {"sft": {"trainer": {"max_steps": int(steps)}}}}


def _with(common: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    merge(document, dict(common))
    merge(document, dict(changes))
    return document


def _pair(seed: int, right: Mapping[str, Right], first: str, second: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
