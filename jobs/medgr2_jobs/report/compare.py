"""Cycles of one workspace beside each other, with paired differences: `python -m medgr2_jobs.report.compare WS A B …`.

Read-only and without torch. The questions of a benchmark are the same in all cycles that share `prepare`'s artifact, so
two checkpoints are compared question by question, and images are drawn together.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from medgr2_api import command_line, paths
from medgr2_api.percent import percent_interval, points_interval
from medgr2_api.stage_contract import ExitCode

from ..errors import StageError
from ..evaluate import metrics
from ..evaluate.metrics import Measurement, cluster_mean
from ..store.rows import Split
from ..store.rows.evaluation import EvalCondition, Scoring
from . import comparison_formats
from .cycle_artifacts import CycleArtifacts
from .cycle_frame import PredictionColumns
from .markdown_table import Markup, table

#: The checkpoints in the order in which the loop makes them.
CHECKPOINTS = ("base", "sft", "grpo")
_SEED = 0  # of the bootstrap: a table must not change when it is printed again


class NoReport(StageError):
    """A cycle has no report yet (exit 2)."""

    exit_code = ExitCode.USAGE


@dataclass(frozen=True)
class Difference:
    """A paired difference in accuracy: what it is measured against, and its 95 % interval."""

    against: str
    value: float
    low: float
    high: float
    n: int
    """Questions that both answered."""


@dataclass(frozen=True)
class ComparisonRow:
    """One checkpoint on one benchmark."""

    cycle: str
    iteration: int
    checkpoint: str
    benchmark: str
    n: int
    accuracy: float
    low: float
    high: float
    to_previous: Difference | None
    """Against the checkpoint before it in the same cycle."""
    to_first: Difference | None
    """Against the same checkpoint of the first cycle."""
    goes_on: bool = True
    """false: GRPO's, which was worse than that of SFT, so that the loop went on with that one."""

    @property
    def name(self) -> str:
        """Such as `sft@1`; `base` for the model the loop started from."""
        return label(self.checkpoint, self.iteration)


#: item id → (right, image), of one checkpoint on one benchmark
Answers = dict[str, tuple[bool, str]]


def label(checkpoint: str, iteration: int) -> str:
    """Such as `sft@1`; `base` for the model the loop started from."""
    return checkpoint if checkpoint == "base" else f"{checkpoint}@{iteration}"


def paired_difference(
    correct_a: ArrayLike, correct_b: ArrayLike, clusters: Sequence[str], seed: int
) -> tuple[float, float, float]:
    """How much more often b is right than a on the same questions.

    Args:
        correct_a: (N,) zeros and ones.
        correct_b: (N,) in the same order.
        clusters: (N,) what is drawn together, such as the image of each question.
        seed: of the bootstrap.

    Returns:
        accuracy of b less that of a, and the bounds of its 95 % percentile interval.

    Raises:
        ValueError: lengths differ, or N is 0.
    """
    a, b = np.asarray(correct_a, dtype=np.float64), np.asarray(correct_b, dtype=np.float64)
    if a.shape != b.shape or len(clusters) != a.size:
        raise ValueError(f"{a.size}, {b.size} and {len(clusters)} values: all three must be of the same questions")
    difference = cluster_mean(b - a, clusters, seed)
    return difference.value, difference.low, difference.high


def answers_of(
    predictions: Sequence[PredictionColumns], split: Split, scoring: Scoring = Scoring.OPTION_LOGPROB
) -> dict[tuple[str, str], Answers]:
    """(checkpoint, benchmark) → answers under the real condition."""
    groups: dict[tuple[str, str], Answers] = {}
    for row in predictions:
        if (row.split, row.scoring, row.condition) == (split, scoring, EvalCondition.REAL):
            groups.setdefault((row.checkpoint, row.benchmark), {})[row.item_id] = (row.correct, row.image_sha256)
    return groups


def difference(a: Answers, b: Answers, against: str) -> Difference | None:
    """b less a on the questions both have; None when there are none."""
    shared = sorted(a.keys() & b.keys())
    if not shared:
        return None
    images = [b[item][1] for item in shared]
    value = paired_difference([a[item][0] for item in shared], [b[item][0] for item in shared], images, _SEED)
    return Difference(against, *value, len(shared))


def compare(
    root: Path,
    cycles: Sequence[str],
    split: Split = Split.TEST,
    scoring: Scoring = Scoring.OPTION_LOGPROB,
    *,
    final: bool = False,
) -> list[ComparisonRow]:
    """One line per cycle, benchmark and checkpoint.

    Args:
        root: the workspace.
        cycles: names; differences are against the first.
        split: validation or test.
        scoring: option_logprob or greedy.
        final: of each cycle only the last checkpoint that went on, against that of the first cycle.

    Raises:
        NoReport: a cycle is not there or has no report.
        CorruptArtifact: an evaluation is damaged.
    """
    lines: list[ComparisonRow] = []
    first: dict[tuple[str, str], tuple[str, Answers]] = {}
    for position, cycle in enumerate(cycles):
        answered, measured, behind = _evaluated(root, cycle, split, scoring)
        previous: dict[str, tuple[str, Answers]] = {}
        if final:  # the loop's order: of each benchmark the last one stays
            last = {key[0]: key for key in answered if key[1:] not in behind}
            answered = {key: answered[key] for key in last.values()}
        for (benchmark, iteration, checkpoint), answers in answered.items():
            name = label(checkpoint, iteration)
            accuracy = measured[benchmark, iteration, checkpoint]
            before = previous.get(benchmark)
            same = (benchmark, "" if final else name)
            reference = first.get(same) if position else None
            lines.append(
                ComparisonRow(
                    cycle, iteration, checkpoint, benchmark, accuracy.n, *accuracy.interval,
                    difference(before[1], answers, before[0]) if before else None,
                    difference(reference[1], answers, f"{cycles[0]} {reference[0]}") if reference else None,
                    goes_on=(iteration, checkpoint) not in behind,
                )
            )  # fmt: skip
            previous[benchmark] = name, answers
            if not position:
                first[same] = name, answers
    return lines


_Checkpoint = tuple[str, int, str]
"""(benchmark, iteration, checkpoint)."""


def _evaluated(
    root: Path, cycle: str, split: Split, scoring: Scoring
) -> tuple[dict[_Checkpoint, Answers], dict[_Checkpoint, Measurement], set[tuple[int, str]]]:
    """The answers of each checkpoint, in the order in which the loop made them, what its evaluation says of it, and the
    checkpoints that did not go on."""
    if not (root / paths.report(cycle) / "results.json").is_file():
        raise NoReport(
            f"cycle {cycle!r} has no report in {root}; it is written after each iteration's evaluation "
            f"(cycles there: {', '.join(_cycles(root)) or 'none'})"
        )
    artifacts = CycleArtifacts(root, cycle)
    evaluations = {t: artifacts.input(f"measure-{t}") for t in artifacts.linked("measure")}
    answered = {
        (benchmark, t, checkpoint): answers
        for t, evaluation in evaluations.items()
        for (checkpoint, benchmark), answers in answers_of(evaluation.rows(PredictionColumns), split, scoring).items()
    }
    measured = {
        (row.benchmark, row.iteration, row.checkpoint): row
        for evaluation in evaluations.values()
        for row in metrics.headline(metrics.read(evaluation.file("results.json").read_text()), scoring)
        if (row.split, row.condition) == (split, EvalCondition.REAL)
    }
    order = sorted(answered, key=lambda key: (key[0], key[1], CHECKPOINTS.index(key[2])))
    behind = {(t, "grpo") for t in artifacts.linked("grpo") if _stays_behind(artifacts, t)}
    return {key: answered[key] for key in order}, measured, behind


def _stays_behind(artifacts: CycleArtifacts, iteration: int) -> bool:
    role = f"grpo-{iteration}"
    return artifacts.has_input(role) and artifacts.input(role).manifest.promoted is False


def _cycles(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "cycles").glob("*") if path.is_dir())


def markdown(lines: Sequence[ComparisonRow]) -> str:
    """The table for people; a difference whose interval leaves out 0 carries a star."""
    several = len({line.cycle for line in lines}) > 1
    accuracy = Markup("micro accuracy, % [95 % interval]")
    head = ["cycle", "benchmark", "checkpoint", "n", accuracy, "against the one before"]
    rows = [
        [
            line.cycle,
            line.benchmark or "validation",
            line.name if line.goes_on else f"{line.name} (did not go on)",
            str(line.n),
            Markup(percent_interval(line.accuracy, line.low, line.high)),
            _points(line.to_previous),
            *([_points(line.to_first)] if several else []),
        ]
        for line in lines
    ]
    head += ["against the first cycle"] if several else []
    text = table(head, rows)
    return (
        f"{text}\n\nMicro accuracy: over all questions. Differences in points, question by question. Intervals: images "
        "drawn with replacement, 2000 times.\n\\* the interval leaves out 0."
    )


def _points(difference: Difference | None) -> str:
    if difference is None:
        return ""
    return Markup(points_interval(difference.value, difference.low, difference.high))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="medgr2 compare", description="Cycles of one workspace beside each other.")
    parser.add_argument("workspace", type=Path)
    parser.add_argument("cycles", nargs="+", metavar="CYCLE")
    parser.add_argument("--split", type=Split, choices=(Split.TEST, Split.VALIDATION), default=Split.TEST)
    parser.add_argument("--scoring", type=Scoring, choices=tuple(Scoring), default=Scoring.OPTION_LOGPROB)
    parser.add_argument("--final", action="store_true", help="of each cycle only the last checkpoint that went on")
    parser.add_argument("--format", choices=("markdown", "csv", "latex", "json"), default="markdown")
    options = parser.parse_args(arguments)
    try:
        lines = compare(options.workspace, options.cycles, options.split, options.scoring, final=options.final)
    except StageError as error:
        print(f"medgr2 compare: {error}", file=sys.stderr)
        return int(error.exit_code)
    if options.format == "json":
        print(json.dumps([{**asdict(line), "name": line.name} for line in lines], indent=1))
    else:
        formats = {"markdown": markdown, "csv": comparison_formats.to_csv, "latex": comparison_formats.to_latex}
        print(formats[options.format](lines).rstrip("\n"))
    return int(ExitCode.OK)


if __name__ == "__main__":
    command_line.end(main)
