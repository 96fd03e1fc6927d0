"""How well the label model of stage relabel tells right answers, on planted witnesses whose errors are known.

    make bench NAME=labels        # about half a minute
    python -m bench.labels --cycles WORKSPACE/cycles/NAME …     # instead: of cycles about phantoms that have run

Of cycles: the first iteration's questions against what the phantoms show, by R alone, and with each of the others.

50,000 questions of five types with four options each. R's scores find the right option on about 90 %; the policy and
the generator err as each case says. Precision and coverage at several posteriors, how many answers go against R and how
many of those are right, and the calibration: what share of the answers with a posterior about p is right. Times are of
the processor, for one case; the memory is that of the process.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from medgr2_jobs.data.synthetic_images import Attributes
from medgr2_jobs.relabel.label_model import TEMPERED, Evidence, Floats, Ints, Witness, fit_scale, posteriors
from medgr2_jobs.report.cycle_artifacts import CycleArtifacts
from medgr2_jobs.store.rows.candidates import AnswerPosterior, Candidate, triplet_of
from medgr2_jobs.store.rows.prepared import PhantomRow
from medgr2_jobs.store.rows.training import RewardAnswer

QUESTIONS, VALIDATION = 50_000, 500
TYPES, OPTIONS = 5, 4
POSTERIORS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
BINS = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.995, 1.0001)
SECONDS, MIB = 30.0, 1024.0  # what 50,000 questions may take


@dataclass(frozen=True)
class Case:
    """How the planted witnesses err."""

    name: str
    values: int
    """Values of a question type, of which each question offers four."""
    blind: float
    """Share of the values on which the generator is always wrong, and the policy, which learnt from it, on half; both
    name the value that comes next among the options."""
    alike: float
    """How often the policy, where it errs on other values, says what the generator says."""


CASES = (
    Case("errors tied to values", 12, 0.34, 0.3),
    Case("errors tied to nothing", 12, 0.0, 0.3),
    Case("the policy repeats the generator", 12, 0.0, 0.9),
    Case("rare values", 20_000, 0.0, 0.3),
)


def planted(case: Case, count: int, seed: int) -> tuple[Evidence, Ints]:
    """What the witnesses say, and the truth."""
    draw, rows = np.random.default_rng(seed), np.arange(count)
    types = draw.integers(TYPES, size=count)
    options = draw.integers(case.values, size=(count, OPTIONS))
    for place in range(1, OPTIONS):  # another value where one is offered twice
        while (twice := (options[:, :place] == options[:, place : place + 1]).any(1)).any():
            options[twice, place] = draw.integers(case.values, size=twice.sum())
    truth = draw.integers(OPTIONS, size=count)
    value = options[rows, truth]
    ahead = (options - value[:, None]) % case.values
    ahead[rows, truth] = case.values
    hidden, following = value < case.blind * case.values, ahead.argmin(1)

    def other() -> Ints:
        return np.asarray((truth + draw.integers(1, OPTIONS, size=count)) % OPTIONS, dtype=np.int64)

    claim = np.where(hidden, following, np.where(draw.random(count) < 0.9, truth, other()))
    wrong = np.where(hidden, following, np.where(draw.random(count) < case.alike, claim, other()))
    usual = np.where(draw.random(count) < np.where(hidden, 0.5, 0.92), truth, wrong)
    shares = np.zeros((count, OPTIONS))
    for _ in range(4):  # samples, of which some are not the policy's usual answer
        said = np.where(draw.random(count) < 0.85, usual, draw.integers(OPTIONS, size=count))
        shares[rows, said] += 0.25
    scores = draw.normal(0, 2, (count, OPTIONS))
    scores[rows, truth] += np.where(draw.random(count) < 0.93, 6, -1)
    evidence = Evidence(
        question_types=[f"type {number}" for number in types.tolist()],
        options=[tuple(f"value {number}" for number in row) for row in options.tolist()],
        scores=np.clip(scores, -6, 10),
        witnesses=[Witness(shares, TEMPERED), Witness(np.eye(OPTIONS)[claim], TEMPERED)],
        gold=np.full(count, -1),
    )
    return evidence, truth


def table(name: str, scores: Floats, truth: Ints, believed: Floats, seconds: float) -> None:
    """Prints what came of a case; `scores` are R's."""
    most, answer = believed.max(1), believed.argmax(1)
    of_reward = scores.argmax(1)
    right = answer == truth
    print(f"\n{name}: {len(truth):,} questions, {seconds:.1f} s")
    print(f"  right on all: {right.mean():.3f}, R alone {np.mean(of_reward == truth):.3f}")
    print("  posterior at least   coverage  precision   against R  of them right")
    for least in POSTERIORS:
        settled = most >= least
        against = settled & (answer != of_reward)
        share = right[against].mean() if against.any() else float("nan")
        print(f"  {least:18.2f} {settled.mean():10.3f} {right[settled].mean():10.3f} {against.sum():11,} {share:14.3f}")
    print("  calibration: " + ", ".join(
        f"{most[inside].mean():.3f} → {right[inside].mean():.3f} ({inside.sum():,})"
        for low, high in pairwise(BINS)
        if (inside := (most >= low) & (most < high)).sum() >= 50
    ))  # fmt: skip


def measured(folder: Path) -> tuple[Evidence, Ints, float]:
    """What was said in the first iteration of a cycle about phantoms, the truth, and what R's scores are worth."""
    artifacts = CycleArtifacts(folder.parents[1], folder.name)
    shown = {
        row.image_sha256: Attributes(row.modality, row.finding, row.location, row.count)
        for row in artifacts.input("prepare").rows(PhantomRow)
    }
    asked = {row.triplet_id: row for row in map(triplet_of, artifacts.input("generate-1").rows(Candidate)) if row}
    rows = artifacts.input("relabel-1").rows(AnswerPosterior)
    triplets = [asked[row.triplet_id] for row in rows]
    truth = [row.options.index(shown[row.image_sha256].value(row.question_type)) for row in triplets]
    known = artifacts.input("reward-0").rows(RewardAnswer)
    scale = fit_scale(np.array([row.option_scores for row in known]), np.array([row.answer_index for row in known]))
    evidence = Evidence(
        question_types=[row.question_type for row in triplets],
        options=[row.options for row in triplets],
        scores=np.array([row.reward_scores for row in rows]),
        witnesses=[
            Witness(np.array([row.policy_shares for row in rows]), TEMPERED),
            Witness(np.eye(OPTIONS)[[row.claim for row in rows]], TEMPERED),
        ],
        gold=np.full(len(rows), -1),
    )
    return evidence, np.array(truth), scale


def of_cycles(folders: Sequence[Path]) -> None:
    """Prints a table of all cycles' questions together for each choice of witnesses."""
    cycles = [measured(folder) for folder in folders]
    for name, chosen in {"R alone": (), "R and the policy": (0,), "R and the generator": (1,), "all": (0, 1)}.items():
        start = time.process_time()
        parts = [
            (made := replace(evidence, witnesses=[evidence.witnesses[at] for at in chosen]), posteriors(made, scale))
            for evidence, _, scale in cycles
        ]
        seconds = time.process_time() - start
        scores = np.concatenate([evidence.scores for evidence, _ in parts])
        believed = np.concatenate([each for _, each in parts])
        table(name, scores, np.concatenate([truth for _, truth, _ in cycles]), believed, seconds)


def main() -> int:
    """Prints the tables; 1 where the model needs too much time or memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=Path, nargs="+", default=[], metavar="FOLDER")
    if folders := parser.parse_args().cycles:
        of_cycles(folders)
        return 0
    slowest = 0.0
    for number, case in enumerate(CASES):
        evidence, truth = planted(case, QUESTIONS, 2 * number)
        held, gold = planted(case, VALIDATION, 2 * number + 1)
        start = time.process_time()
        believed = posteriors(evidence, fit_scale(held.scores, gold))
        seconds = time.process_time() - start
        slowest = max(slowest, seconds)
        table(case.name, evidence.scores, truth, believed, seconds)
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\n{QUESTIONS:,} questions: at most {slowest:.1f} s (allowed {SECONDS:.0f}), {mib:,.0f} MiB ({MIB:,.0f})")
    return int(slowest > SECONDS or mib > MIB)


if __name__ == "__main__":
    sys.exit(main())
