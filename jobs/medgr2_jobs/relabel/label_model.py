"""Which answers are right where nobody has gold: witnesses that err in ways of their own, weighed by how they err.

Dawid and Skene (1979), by expectation maximisation: how often a witness says b where the truth is a is estimated from
all questions together, for every pair (a, b) of values that questions of a type offer, and shrunk to how often the
witness is right on that type at all. R is soft evidence: its scores are likelihoods, on a scale that is fitted on the
validation split's gold. So a witness is believed where it is reliable, an answer may go against each of the three, and
one that goes against R is what R can learn from; agreement with R would only tell R what it says already.

crowd-kit and Snorkel have such models for hard labels of classes that all items share; here every question has options
of its own, and what R and the policy say is soft.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..prompts.answers import normalise

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Questions' worth of the type's own reliability that every value starts with: rare values say little.
_PRIOR = 2.0
_ROUNDS = 50
#: Change of a posterior below which nothing more happens.
_SETTLED = 1e-4
#: Least rate of any answer: nobody is so sure that one answer alone decides.
_LEAST_RATE = 1e-3
#: How much of its log-likelihood a witness keeps that has learnt from another one, as the policy has from what the
#: generator says: what two such say alike counts less than what two strangers say alike (docs/cross-examination.md).
TEMPERED = 0.7
_SCALES = (1e-3, 1e3)


@dataclass(frozen=True)
class Witness:
    """Somebody who answers the questions."""

    said: Floats
    """(N, K) share of its answers that pick each option; a row of zeros: it says nothing."""
    weight: float = 1.0
    """Of its log-likelihood; below 1 where it has learnt from another witness."""


@dataclass(frozen=True)
class Evidence:
    """What is said of N questions with at most K options."""

    question_types: Sequence[str]
    """(N)"""
    options: Sequence[tuple[str, ...]]
    """(N) texts of each question's options."""
    scores: Floats
    """(N, K) R's score of the same text with each option in turn; -inf where there is no such option."""
    witnesses: Sequence[Witness]
    gold: Ints
    """(N,) what an expert says; -1: nothing."""

    @cached_property
    def offered(self) -> NDArray[np.bool_]:
        """(N, K) whether there is such an option."""
        return np.isfinite(self.scores)


def posteriors(evidence: Evidence, scale: float) -> Floats:
    """How likely each option is right, by all that is said.

    Args:
        evidence: see there.
        scale: nats that a point of R's score is worth (`fit_scale`).

    Returns:
        (N, K), rows add up to 1; an expert's answer has 1.
    """
    if not len(evidence.scores):
        return evidence.scores.copy()
    pairs = _Pairs.of(evidence)
    of_reward = np.where(evidence.offered, scale * np.where(evidence.offered, evidence.scores, 0.0), -np.inf)
    believed = _with_gold(_softmax(of_reward), evidence.gold)
    for _ in range(_ROUNDS):
        total = of_reward.copy()
        for witness in evidence.witnesses:
            total += witness.weight * pairs.log_likelihood(witness.said, believed)
        before, believed = believed, _with_gold(_softmax(total), evidence.gold)
        if np.abs(believed - before).max() < _SETTLED:
            break
    return believed


def fit_scale(scores: Floats, gold: Ints) -> float:
    """The scale under which softmax(scale · scores) finds the gold answers likeliest.

    The targets are Platt's: each right answer counts as right in (N + 1) of (N + 2) cases, so that a model without an
    error on few questions is not taken for infallible. The likelihood is concave in the scale: bisection of its slope.

    Args:
        scores: (N, K), -inf where there is no such option; N at least 1.
        gold: (N,) index of each right option.
    """
    offered = np.isfinite(scores)
    values = np.where(offered, scores, 0.0)
    rows = np.arange(len(gold))
    doubt = 1 / (len(gold) + 2)
    target = np.where(offered, doubt / np.maximum(1, offered.sum(1, keepdims=True) - 1), 0.0)
    target[rows, gold] = 1 - doubt
    wanted = float((target * values).sum())

    def slope(scale: float) -> float:
        return wanted - float((_softmax(np.where(offered, scale * values, -np.inf)) * values).sum())

    low, high = _SCALES
    if slope(low) <= 0:  # R knows nothing: its scores count for nothing
        return low
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return low


@dataclass(frozen=True)
class _Pairs:
    """Every (truth, said) pair of options of every question: P in all, one after the other."""

    question: Ints
    """(P,) which question."""
    truth: Ints
    """(P,) place of the option that is supposed to be right."""
    said: Ints
    """(P,) place of the option that is said."""
    kind: Ints
    """(P,) number of the pair of values, over all questions of the type."""
    same: NDArray[np.bool_]
    """(kinds,) the value is said that is right."""
    type_of_kind: Ints
    """(kinds,) number of the question type."""
    others: Floats
    """(types,) options beside the right one, on average."""
    shape: tuple[int, int]

    @classmethod
    def of(cls, evidence: Evidence) -> _Pairs:
        types: dict[str, int] = {}
        values: dict[tuple[int, str], int] = {}
        type_of = np.array([types.setdefault(name, len(types)) for name in evidence.question_types], dtype=np.int64)
        value = np.full(evidence.scores.shape, -1, dtype=np.int64)
        for row, options in enumerate(evidence.options):
            for place, option in enumerate(options):
                value[row, place] = values.setdefault((int(type_of[row]), normalise(option)), len(values))
        question, truth, said = np.nonzero(evidence.offered[:, :, None] & evidence.offered[:, None, :])
        code = value[question, truth] * len(values) + value[question, said]
        codes, kind = np.unique(code, return_inverse=True)
        type_of_kind = np.zeros(len(codes), dtype=np.int64)
        type_of_kind[kind] = type_of[question]
        questions = np.bincount(type_of, minlength=len(types))
        offered = np.bincount(type_of, evidence.offered.sum(1), minlength=len(types))
        return cls(
            question=question,
            truth=truth,
            said=said,
            kind=kind.reshape(-1),
            same=codes // len(values) == codes % len(values),
            type_of_kind=type_of_kind,
            others=np.maximum(1.0, offered / np.maximum(1, questions) - 1),
            shape=(len(evidence.scores), evidence.scores.shape[1]),
        )

    def log_likelihood(self, said: Floats, believed: Floats) -> Floats:
        """How likely a witness says what it says if each option were right: (N, K) log-likelihoods.

        Args:
            said: (N, K) shares.
            believed: (N, K) how likely each option is right, by what is known so far.
        """
        rates = self._rates(said, believed)
        cells = self.question * self.shape[1] + self.truth
        total = _sums(cells, rates, self.shape[0] * self.shape[1])  # of the options that are offered
        logs = said[self.question, self.said] * np.log(rates / total[cells])
        return _sums(cells, logs, len(total)).reshape(self.shape)

    def _rates(self, said: Floats, believed: Floats) -> Floats:
        """(P,) how often the witness says the one value where the other is right, on all questions but the pair's own:
        what is said to a question must not be the evidence for believing it."""
        kinds, types = len(self.same), len(self.others)
        truth = believed[self.question, self.truth]
        own_count = truth * said[self.question, self.said]
        own_chance = truth * said.sum(1)[self.question]
        count, chance = _sums(self.kind, own_count, kinds), _sums(self.kind, own_chance, kinds)
        of_same = self.type_of_kind[self.same]
        right = (_sums(of_same, count[self.same], types) + 1) / (_sums(of_same, chance[self.same], types) + 2)
        prior = np.where(self.same, right[self.type_of_kind], ((1 - right) / self.others)[self.type_of_kind])
        elsewhere = count[self.kind] - own_count + _PRIOR * prior[self.kind]
        rates: Floats = np.maximum(_LEAST_RATE, elsewhere / (chance[self.kind] - own_chance + _PRIOR))
        return rates


def _sums(groups: Ints, values: Floats, count: int) -> Floats:
    """(count,) sum of the values of each group."""
    return np.asarray(np.bincount(groups, values, count), dtype=np.float64)


def _with_gold(believed: Floats, gold: Ints) -> Floats:
    known = np.flatnonzero(gold >= 0)
    believed[known] = 0.0
    believed[known, gold[known]] = 1.0
    return believed


def _softmax(values: Floats) -> Floats:
    """(N, K) over the options; -inf becomes 0."""
    shifted = np.exp(values - values.max(1, keepdims=True))
    return np.asarray(shifted / shifted.sum(1, keepdims=True), dtype=np.float64)
