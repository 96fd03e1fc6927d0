"""Whether a student may take tasks over: what it writes beside what the first generator writes, task by task.

How often R accepts its triplets is not enough: a student of the kept triplets alone is accepted more often than its
teacher, and has narrowed to what R likes (docs/distillation.md). So its answers must stay as diverse, its questions as
hard to guess and as distinct, the policy must agree no less, and it must know what the seed knows.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from medgr2_api.distillation import StudentPromotion

from ..curate.option_prior_filter import CrossFittedPrior
from ..evaluate.metrics import Interval, cluster_mean
from ..prompts.answers import normalise
from ..store.rows.candidates import Triplet

#: Questions of a kind that its share of right answers needs to count.
_MIN_KIND = 10


@dataclass(frozen=True)
class ProbeAnswer:
    """What a generator made of a task of the probe."""

    triplet: Triplet | None
    """None: nothing usable."""
    score: float | None
    """R's of the triplet."""
    agreed: bool | None
    """Whether the policy answers the triplet's question as it does; None: it was not asked."""


@dataclass(frozen=True)
class Figures:
    """A generator on the probe's tasks."""

    tasks: int
    parsed: float
    """Share of tasks that ended as a triplet."""
    accepted: float
    """Share of tasks whose triplet R accepts."""
    entropy: float | None
    """Of the answers to each kind of question, as a share of that of as many answers equally often; the mean over the
    kinds. Like all that follows on tasks of which both generators made a triplet; None: there are none."""
    option_prior: float | None
    """Share of the questions that the options alone answer (`curate.option_prior_filter`)."""
    distinct: float | None
    """Distinct questions (with options and answer) for each question."""
    agreement: float | None
    """Share of the questions to which the policy gives the same answer."""


@dataclass(frozen=True)
class Gold:
    """Answers to validation questions."""

    questions: int
    student: float
    """Share that the student answers rightly, when the question is put into its mouth."""
    policy: float
    """Share that the policy answers rightly."""
    weakest_kind: str
    """The kind of question that the student knows least of."""
    weakest: float
    """Its share of right answers, as a part of the mean over the kinds."""


@dataclass(frozen=True)
class Check:
    """One check of the gate."""

    name: str
    value: float | None
    """None: it could not be measured."""
    bound: float
    passed: bool


@dataclass(frozen=True)
class StudentGate:
    """Whether a student passed, and all that was looked at; the content of `gate.json`."""

    passed: bool
    reason: str
    """For people."""
    threshold: float
    """Score from which on R accepts."""
    student: Figures
    first: Figures
    """The first generator's."""
    gain: Interval | None
    """Of the student in accepted tasks, with the 95 % interval from images drawn with replacement."""
    gold: Gold | None
    """None: the validation split has no such question."""
    in_force: float | None
    """Share of tasks whose triplet by the student before R accepts, on the tasks that both were asked."""
    checks: list[Check]

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "gain": self.gain._asdict() if self.gain else None}


def compared(
    student: Mapping[str, ProbeAnswer], first: Mapping[str, ProbeAnswer], threshold: float
) -> tuple[Figures, Figures]:
    """Both generators' figures on the same tasks.

    Args:
        student: by task.
        first: the first generator's, of the same tasks.
        threshold: R accepts what scores higher.
    """
    pairs = [(mine, theirs) for name in student if (mine := student[name].triplet) and (theirs := first[name].triplet)]
    kinds: dict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        for triplet in pair:
            kinds[triplet.question_type].add(_answer(triplet))
    both = {name for name in student if student[name].triplet and first[name].triplet}

    def figures(answers: Mapping[str, ProbeAnswer], triplets: Sequence[Triplet]) -> Figures:
        agreed = [answers[name].agreed for name in sorted(both) if answers[name].agreed is not None]
        return Figures(
            tasks=len(answers),
            parsed=_mean([answer.triplet is not None for answer in answers.values()]) or 0.0,
            accepted=_mean([accepts(answer, threshold) for answer in answers.values()]) or 0.0,
            entropy=_entropy(triplets, kinds),
            option_prior=CrossFittedPrior(triplets).accuracy() if triplets else None,
            distinct=len({_said(triplet) for triplet in triplets}) / len(triplets) if triplets else None,
            agreement=_mean([bool(value) for value in agreed]),
        )

    return figures(student, [mine for mine, _ in pairs]), figures(first, [theirs for _, theirs in pairs])


def accepts(answer: ProbeAnswer, threshold: float) -> bool:
    """Whether R accepts what came of a task."""
    return answer.triplet is not None and answer.score is not None and answer.score > threshold


def acceptance_gain(
    student: Mapping[str, ProbeAnswer],
    first: Mapping[str, ProbeAnswer],
    images: Mapping[str, str],
    threshold: float,
    seed: int,
) -> Interval | None:
    """Of the student over the first generator, paired by task; None of no tasks.

    Args:
        student: by task.
        first: of the same tasks.
        images: sha256 by task; an image's tasks are drawn together.
        threshold: R accepts what scores higher.
        seed: of the bootstrap.
    """
    if not student:
        return None
    values = [float(accepts(student[name], threshold)) - accepts(first[name], threshold) for name in student]
    return cluster_mean(values, [images[name] for name in student], seed)


def gold(kinds: Sequence[str], student: Sequence[bool], policy: Sequence[bool]) -> Gold | None:
    """From who answered which validation question rightly; None of no questions.

    Args:
        kinds: kind of each question (N).
        student: whether the student is right (N).
        policy: whether the policy is (N).
    """
    if not kinds:
        return None
    right: dict[str, list[bool]] = defaultdict(list)
    for kind, correct in zip(kinds, student, strict=True):
        right[kind].append(correct)
    shares = {kind: float(np.mean(values)) for kind, values in right.items() if len(values) >= _MIN_KIND}
    shares = shares or {"": float(np.mean(student))}
    weakest = min(shares, key=lambda kind: (shares[kind], kind))
    mean = float(np.mean([*shares.values()]))
    return Gold(
        len(kinds), float(np.mean(student)), float(np.mean(policy)), weakest, shares[weakest] / mean if mean else 0.0
    )


def decide(
    figures: tuple[Figures, Figures],
    gain: Interval | None,
    known: Gold | None,
    in_force: tuple[float, float] | None,
    promotion: StudentPromotion,
    threshold: float,
) -> StudentGate:
    """Checks every bound.

    Args:
        figures: the student's and the first generator's.
        gain: in accepted tasks.
        known: answers to validation questions.
        in_force: shares of accepted tasks of the student and of the one that it would replace, on tasks of both; None:
            there is none.
        promotion: the bounds.
        threshold: R accepts what scores higher.
    """
    student, first = figures
    checks = [
        _least("tasks of the probe", student.tasks, promotion.min_tasks),
        _least("parsed", student.parsed, promotion.min_parse_rate),
        _least("lower end of the gain in accepted tasks", gain.low if gain else None, promotion.min_acceptance_gain),
        _against("entropy of its answers", student.entropy, first.entropy, -promotion.max_entropy_loss),
        _against(
            "answered by the options alone", student.option_prior, first.option_prior, promotion.max_option_prior_gain,
            most=True,
        ),
        _against("distinct questions", student.distinct, first.distinct, factor=promotion.min_distinct_ratio),
        _against("agreement of the policy", student.agreement, first.agreement, -promotion.max_agreement_loss),
    ]  # fmt: skip
    if known is not None:
        checks += [
            _least("right about validation questions", known.student, known.policy - promotion.max_gold_loss),
            _least(f"right about those of kind {known.weakest_kind}, against the mean", known.weakest,
                   promotion.min_kind_ratio),
        ]  # fmt: skip
    if in_force is not None:
        checks.append(_least("accepted tasks, of those that the student before was asked", *in_force))
    failed = [check for check in checks if not check.passed]
    reason = "; ".join(
        f"{check.name}: {'not measured' if check.value is None else f'{check.value:.3f}'}, bound {check.bound:.3f}"
        for check in failed
    )
    return StudentGate(
        not failed, reason or "all checks passed", threshold, student, first, gain, known,
        in_force[1] if in_force else None, checks,
    )  # fmt: skip


def _least(name: str, value: float | None, bound: float) -> Check:
    return Check(name, value, bound, value is not None and value >= bound)


def _against(
    name: str, value: float | None, first: float | None, by: float = 0.0, factor: float = 1.0, *, most: bool = False
) -> Check:
    """Against the first generator's value; what could not be measured has not passed."""
    if value is None or first is None:
        return Check(name, value, 0.0, False)
    bound = first * factor + by
    return Check(name, value, bound, value <= bound if most else value >= bound)


def _entropy(triplets: Sequence[Triplet], kinds: Mapping[str, set[str]]) -> float | None:
    """Mean over kinds, weighed by questions; a kind with one answer says nothing.

    Args:
        triplets: the questions.
        kinds: answers of both generators by kind: as many count as possible.
    """
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for triplet in triplets:
        answers[triplet.question_type][_answer(triplet)] += 1
    total = weight = 0.0
    for kind, counts in answers.items():
        if len(kinds[kind]) < 2:
            continue
        shares = np.array([*counts.values()], dtype=np.float64) / counts.total()
        total += counts.total() * float(-(shares * np.log(shares)).sum()) / math.log(len(kinds[kind]))
        weight += counts.total()
    return total / weight if weight else None


def _answer(triplet: Triplet) -> str:
    return normalise(triplet.options[triplet.answer_index])


def _said(triplet: Triplet) -> tuple[str, frozenset[str], str]:
    return normalise(triplet.question), frozenset(map(normalise, triplet.options)), _answer(triplet)


def _mean(values: Sequence[bool]) -> float | None:
    return float(np.mean(values)) if values else None
