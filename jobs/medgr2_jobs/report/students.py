"""What the report says of students: how each did on the probe, who generated what, and what was learnt from."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from medgr2_api.percent import percent, points_interval

from ..store.rows.candidates import CandidateOutcome, is_student
from ..store.rows.training import TaughtRow
from .cycle_frame import CycleFrame
from .markdown_table import Markup, table

STAGE = "distill"
FIRST = "first generator"


@dataclass(frozen=True, slots=True)
class ProbeLine:
    """A generator on the probe of an iteration; what was not measured is None."""

    iteration: int
    generator: str
    """The first generator, or such as distill@1."""
    tasks: int
    parsed: float
    accepted: float
    gain: float | None
    """In accepted tasks over the first generator, with its 95 % interval."""
    gain_low: float | None
    gain_high: float | None
    entropy: float | None
    option_prior: float | None
    distinct: float | None
    agreement: float | None
    gold: float | None
    decision: str
    """Whether it takes tasks over, and if not, why."""


@dataclass(frozen=True, slots=True)
class GeneratorRow:
    """What a generator wrote in an iteration."""

    iteration: int
    generator: str
    candidates: int
    parsed: float
    """Share of them that is a triplet."""
    score: float | None
    """Mean of R over its triplets."""
    kept: float
    """Share of them that curation kept."""
    right: float | None
    """Share of its triplets that is right, where that is known."""


@dataclass(frozen=True, slots=True)
class TaughtShare:
    """How many rows of an origin a student has learnt from."""

    iteration: int
    origin: str
    depth: int
    """How many students stand behind them; 0: none, the seed or the first generator."""
    rows: int
    share: float


@dataclass(frozen=True)
class StudentTables:
    """All of it; empty where there is no student."""

    probe: list[ProbeLine] = field(default_factory=list)
    generators: list[GeneratorRow] = field(default_factory=list)
    taught: list[TaughtShare] = field(default_factory=list)


@dataclass(frozen=True)
class LearntFrom:
    """Whose pictures a student has learnt from: what may become of its rows follows from that. None: not known any
    more."""

    stage: str
    sources: list[str] | None
    may_leave: bool | None
    """All of them may be sent to an external provider, by prepare's table."""


def learnt_from(frame: CycleFrame, generator: str) -> LearntFrom:
    """Of the student that has this name as a generator."""
    iteration = int(generator.partition("@")[2].partition(":")[0])
    stage = f"{STAGE}@{iteration}"
    if not frame.has(STAGE, iteration):
        return LearntFrom(stage, None, None)
    told = json.loads(frame.artifact(STAGE, iteration).file("student.json").read_text())
    return LearntFrom(stage, told["sources"], told["mayLeave"])


def tables(frame: CycleFrame) -> StudentTables:
    """The tables of a cycle."""
    students = frame.iterations(STAGE)
    if not students:
        return StudentTables()
    return StudentTables(
        [line for t in students for line in _probe(frame, t)],
        [row for t in frame.iterations("generate") for row in _generators(frame, t)],
        [row for t in students for row in _taught(frame, t)],
    )


def _probe(frame: CycleFrame, iteration: int) -> list[ProbeLine]:
    gate = json.loads(frame.artifact(STAGE, iteration).file("gate.json").read_text())
    gain, gold = gate["gain"] or {}, gate["gold"] or {}
    names = ("tasks", "parsed", "accepted", "entropy", "option_prior", "distinct", "agreement")

    def line(generator: str, figures: dict[str, Any], gold: float | None, decision: str, **gains: Any) -> ProbeLine:
        told = {name: figures[name] for name in names}
        gains = {"gain": None, "gain_low": None, "gain_high": None} | gains
        return ProbeLine(iteration=iteration, generator=generator, **told, **gains, gold=gold, decision=decision)

    decision = "takes tasks over" if gate["passed"] else f"refused: {gate['reason']}"
    gains = {"gain": gain.get("value"), "gain_low": gain.get("low"), "gain_high": gain.get("high")}
    return [
        line(FIRST, gate["first"], None, ""),
        line(f"{STAGE}@{iteration}", gate["student"], gold.get("student"), decision, **gains),
    ]


def _generators(frame: CycleFrame, iteration: int) -> list[GeneratorRow]:
    scores, truth = frame.scores(iteration), frame.truth(iteration)
    kept = {row.triplet_id for row in frame.decisions(iteration) if row.keep}
    names: dict[str, list[str]] = defaultdict(list)
    parsed: dict[str, list[str]] = defaultdict(list)
    for row in frame.candidates(iteration):
        who = row.generator.partition(":")[0] if is_student(row.generator) else row.generator or "unknown"
        names[who].append(row.triplet_id)
        if row.outcome is CandidateOutcome.OK:
            parsed[who].append(row.triplet_id)
    return [
        GeneratorRow(
            iteration,
            who,
            len(asked),
            len(parsed[who]) / len(asked),
            _mean([scores[name] for name in parsed[who] if name in scores]),
            sum(name in kept for name in asked) / len(asked),
            _mean([float(truth[name]) for name in parsed[who] if name in truth]),
        )
        for who, asked in sorted(names.items())
    ]


def _taught(frame: CycleFrame, iteration: int) -> list[TaughtShare]:
    rows = frame.artifact(STAGE, iteration).rows(TaughtRow)
    counts = Counter((row.origin, row.depth) for row in rows)
    return [
        TaughtShare(iteration, origin, depth, count, count / len(rows))
        for (origin, depth), count in sorted(counts.items(), key=lambda item: (item[0][1], item[0][0]))
    ]


def markdown(students: StudentTables) -> list[str]:
    """The report's section on students."""
    if not students.probe:
        return []
    head = [
        "iteration", "generator", "tasks", "parsed, %", "accepted by the reward model, %", "gain", "entropy, %",
        "options alone, %", "distinct, %", "policy agrees, %", "validation questions right, %", "",
    ]  # fmt: skip
    cells = [
        [
            str(row.iteration), row.generator, f"{row.tasks:,}", percent(row.parsed), percent(row.accepted), _gain(row),
            *map(percent, (row.entropy, row.option_prior, row.distinct, row.agreement, row.gold)), row.decision,
        ]
        for row in students.probe
    ]  # fmt: skip
    parts = [
        "## Students",
        "A student learns to generate from the training set. It is asked the tasks of the probe, pictures that no "
        "student learns from, and compared task by task with what the first generator made of them. **entropy**: of "
        "the answers to a kind of question, 100: all equally often. **options alone**: questions that can be answered "
        "without the image. A student that has narrowed to what the reward model likes is accepted more often and "
        "falls behind in these. No figure of this table knows what is right.",
        table(head, cells),
    ]
    if len({row.generator for row in students.generators}) > 1:
        head = ["iteration", "generator", "candidates", "parsed, %", "mean score", "kept, %"]
        known = any(row.right is not None for row in students.generators)
        lines = [
            [
                str(row.iteration), row.generator, f"{row.candidates:,}", percent(row.parsed),
                "–" if row.score is None else f"{row.score:.2f}", percent(row.kept),
                *([percent(row.right)] if known else []),
            ]
            for row in students.generators
        ]  # fmt: skip
        parts += ["**Who generated what**", table([*head, *(["right, %"] if known else [])], lines)]
    lines = [
        [str(row.iteration), row.origin, str(row.depth), f"{row.rows:,}", percent(row.share)] for row in students.taught
    ]
    told = "**What students learnt from**; depth: how many students stand behind a row"
    return [*parts, told, table(["iteration", "origin", "depth", "rows", "share, %"], lines)]


def _gain(row: ProbeLine) -> str:
    if row.gain is None or row.gain_low is None or row.gain_high is None:
        return ""
    return Markup(points_interval(row.gain, row.gain_low, row.gain_high))


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
