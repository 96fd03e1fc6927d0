"""The label model on planted witnesses: it finds who errs where, and it knows what it does not know."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from medgr2_jobs.relabel.label_model import Evidence, Floats, Ints, Witness, fit_scale, posteriors


@dataclass(frozen=True)
class Planted:
    """Questions whose answers the test knows."""

    evidence: Evidence
    truth: Ints
    blind: Any
    """(N,) whether the two witnesses are wrong about this value most of the time."""

    def right(self, believed: Floats) -> Any:
        return believed.argmax(1) == self.truth


def planted(seed: int, count: int = 3000, *, blind: int = 0, values: int = 8, weight: float = 1.0) -> Planted:
    """Four types of questions with `values` values each and four options; R is right on about 88 %.

    The policy and the generator are right on 95 and 90 %, but where the truth is one of the first `blind` values of a
    type: there they are right on half and on none, and name the next value in its place.
    """
    rng = np.random.default_rng(seed)
    rows = np.arange(count)
    types = rng.integers(4, size=count)
    options = np.argsort(rng.random((count, values)), axis=1)[:, :4]
    truth = rng.integers(4, size=count)
    value = options[rows, truth]
    next_one = np.array([min(set(range(4)) - {int(t)}, key=lambda at, o=o, v=v: (o[at] - v) % values)
                         for t, o, v in zip(truth, options, value, strict=True)])  # fmt: skip
    hidden = value < blind

    def witness(reliable: float, on_blind: float) -> Witness:
        correct = rng.random(count) < np.where(hidden, on_blind, reliable)
        wrong = np.where(hidden, next_one, (truth + rng.integers(1, 4, size=count)) % 4)
        said = np.zeros((count, 4))
        said[rows, np.where(correct, truth, wrong)] = 1
        return Witness(said, weight)

    scores = rng.normal(0, 2, (count, 4))
    scores[rows, truth] += np.where(rng.random(count) < 0.93, 6, -1)
    evidence = Evidence(
        question_types=[f"type {number}" for number in types],
        options=[tuple(f"value {number}" for number in row) for row in options],
        scores=np.clip(scores, -6, 10),
        witnesses=[witness(0.95, 0.5), witness(0.9, 0.0)],
        gold=np.full(count, -1),
    )
    return Planted(evidence, truth, hidden)


def scale() -> float:
    held = planted(99, 240)
    return fit_scale(held.evidence.scores, held.truth)


def rewarded(made: Planted) -> Any:
    """Where R alone is right."""
    return made.evidence.scores.argmax(1) == made.truth


def test_who_errs_on_a_value_is_found_out_without_gold() -> None:
    made = planted(1, blind=3)
    believed = posteriors(made.evidence, scale())
    right, alone = made.right(believed), rewarded(made)
    claims = made.evidence.witnesses[1].said.argmax(1)
    assert right.mean() > alone.mean() + 0.03
    assert right[made.blind].mean() > 0.93, "what R says counts where the others are blind"
    assert right[~made.blind].mean() > alone[~made.blind].mean() + 0.05, "and what the others say where they see"
    assert (claims == made.truth)[made.blind].mean() == 0
    settled = believed.max(1) >= 0.8
    against = settled & (believed.argmax(1) != made.evidence.scores.argmax(1))
    assert settled.mean() > 0.85
    assert right[settled].mean() > 0.97
    assert against.sum() > 60
    assert right[against].mean() > 0.85, "an answer against R is mostly right: it is what R can learn from"


@pytest.mark.parametrize("values", [8, 400])
def test_witnesses_without_systematic_errors_are_not_harmed(values: int) -> None:
    """Rare values say nothing of their own; the type's reliability stands for them."""
    made = planted(2, values=values)
    believed = posteriors(made.evidence, scale())
    right = made.right(believed)
    assert right.mean() > rewarded(made).mean() + 0.05
    settled = believed.max(1) >= 0.8
    assert settled.mean() > 0.9
    assert right[settled].mean() > 0.985


@pytest.mark.parametrize(("blind", "values"), [(0, 8), (3, 8), (0, 400)])
def test_a_posterior_is_what_it_says(blind: int, values: int) -> None:
    """Calibration: of the answers with a posterior about p a share of about p is right."""
    most, right = [], []
    for seed in range(3):
        made = planted(seed, blind=blind, values=values, weight=0.7)
        believed = posteriors(made.evidence, scale())
        most.append(believed.max(1))
        right.append(made.right(believed))
    p, good = np.concatenate(most), np.concatenate(right)
    for low, high in ((0.5, 0.7), (0.7, 0.85), (0.85, 0.95), (0.95, 0.99), (0.99, 1.01)):
        inside = (p >= low) & (p < high)
        error = 3 * (0.25 / inside.sum()) ** 0.5
        assert good[inside].mean() == pytest.approx(p[inside].mean(), abs=0.06 + error), (low, inside.sum())
    assert good[p >= 0.8].mean() >= p[p >= 0.8].mean() - 0.02


def test_what_a_witness_says_to_a_question_is_no_evidence_of_its_reliability_there() -> None:
    """Every value occurs once: a reliability counted on the question itself would make each witness right."""
    made = planted(3, 400, values=8)
    own = replace(made.evidence, options=[tuple(f"{row} {at}" for at in range(4)) for row in range(400)])
    believed = posteriors(own, scale())
    assert believed.max(1).mean() == pytest.approx(made.right(believed).mean(), abs=0.015)


def test_an_expert_is_right_and_teaches_who_is_reliable() -> None:
    made = planted(4, blind=3)
    unknown, mute = made.evidence.gold, np.zeros_like(made.evidence.scores)
    gold = np.where(np.random.default_rng(0).random(3000) < 0.1, made.truth, -1)
    before, after = (posteriors(replace(made.evidence, scores=mute, gold=g), 1.0) for g in (unknown, gold))
    known = gold >= 0
    assert (after[known, gold[known]] == 1).all()
    assert made.right(after)[~known].mean() > made.right(before)[~known].mean() + 0.01


def test_a_witness_that_learnt_from_another_counts_less() -> None:
    made = planted(5)
    claim = made.evidence.witnesses[1].said
    strangers, pupil = ([Witness(claim, w), Witness(claim, w)] for w in (1.0, 0.7))
    loud, quiet = (posteriors(replace(made.evidence, witnesses=w), scale()) for w in (strangers, pupil))
    assert quiet.max(1).mean() < loud.max(1).mean(), "the same twice is not twice as sure"
    assert made.right(quiet).mean() > made.right(loud).mean()


def test_options_that_are_not_there_and_silence_say_nothing() -> None:
    scores = np.array([[2.0, 0.0, -np.inf], [0.0, 1.0, 0.0]])
    silent = Witness(np.zeros((2, 3)))
    evidence = Evidence(["a", "a"], [("x", "y"), ("x", "y", "z")], scores, [silent], np.array([-1, -1]))
    believed = posteriors(evidence, 1.0)
    assert believed[0, 2] == 0
    assert believed.sum(1) == pytest.approx([1, 1])
    assert believed[0, 0] == pytest.approx(np.exp(2) / (np.exp(2) + 1)), "R alone"
    nothing = Evidence([], [], np.zeros((0, 0)), [], np.zeros(0, dtype=np.int64))
    assert posteriors(nothing, 1.0).shape == (0, 0)


def test_the_scale_makes_the_gold_likeliest() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 3, (4000, 4))
    chances = np.exp(0.4 * scores)
    chances /= chances.sum(1, keepdims=True)
    gold = (chances.cumsum(1) > rng.random((4000, 1))).argmax(1)
    assert fit_scale(scores, gold) == pytest.approx(0.4, abs=0.02)
    assert fit_scale(scores, rng.integers(4, size=4000)) < 0.05, "scores that say nothing count for nothing"
    perfect = np.tile([5.0, 0, 0, 0], (20, 1))
    few, many = (fit_scale(perfect[:n], np.zeros(n, dtype=np.int64)) for n in (4, 20))
    assert few < many < 2, "twenty right answers do not make it infallible"
