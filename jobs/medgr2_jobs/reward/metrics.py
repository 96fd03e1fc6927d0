"""How good R is on held-out graded rows."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ..evaluate.rank_statistics import auroc, spearman
from ..store.rows.prepared import Grade


class GradedResponse(Protocol):
    """A held-out answer with its grade: a graded row, or a preference."""

    @property
    def response(self) -> str: ...

    @property
    def grade(self) -> Grade: ...

    @property
    def target(self) -> float: ...


def reward_metrics(
    rows: Sequence[GradedResponse], questions: Sequence[str], scores: np.ndarray, good: float
) -> dict[str, float]:
    """Figures of one R on graded rows. What the rows do not allow to measure is left out.

    Args:
        rows: N graded answers.
        questions: (N) names the question that each one answers.
        scores: (N,) R's scores.
        good: least target of a good row.

    Returns:
        n; spearman (rank correlation of score and target); pairwise_accuracy (share of same-question pairs of
        different target in the right order, ties half); auroc (good against the rest); image_sensitivity (share of
        original texts that score higher with their own image than with another, ties half); mae_<grade> and their
        mean over grades, mae.
    """
    targets = np.array([row.target for row in rows], dtype=np.float64)
    figures: dict[str, float] = {"n": float(len(rows))}
    if len(set(targets)) > 1:
        varies = len(set(scores.tolist())) > 1
        figures["spearman"] = spearman(scores, targets) if varies else 0.0
    members: dict[str, list[int]] = defaultdict(list)
    for index, question in enumerate(questions):
        members[question].append(index)
    pairs = [
        (a, b) if targets[a] > targets[b] else (b, a)
        for indices in members.values()
        for a, b in itertools.combinations(indices, 2)
        if targets[a] != targets[b]
    ]
    if pairs:
        figures["pairwise_accuracy"] = _higher_first(scores, pairs)
    is_good = targets >= good
    if is_good.any() and not is_good.all():
        figures["auroc"] = auroc(scores, is_good)
    if swapped := image_pairs(rows, questions):
        figures["image_sensitivity"] = _higher_first(scores, swapped)
    grades = sorted({row.grade for row in rows})
    for grade in grades:
        chosen = np.array([row.grade is grade for row in rows])
        figures[f"mae_{grade}"] = float(np.abs(scores - targets)[chosen].mean())
    if grades:
        figures["mae"] = float(np.mean([figures[f"mae_{grade}"] for grade in grades]))
    return figures


def image_pairs(rows: Sequence[GradedResponse], questions: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of rows that differ in the image alone: (original, the same text beside another image)."""
    answered = [(question, row.response) for question, row in zip(questions, rows, strict=True)]
    own = {answered[index]: index for index, row in enumerate(rows) if row.grade is Grade.ORIGINAL}
    return [
        (own[answered[index]], index)
        for index, row in enumerate(rows)
        if row.grade is Grade.IMAGE_MISMATCH and answered[index] in own
    ]


def higher_first(scores: np.ndarray, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """For each of P pairs 1 where its first scores higher than its second, .5 where they are equal, else 0: (P,)."""
    first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return np.asarray((scores[first] > scores[second]) + 0.5 * (scores[first] == scores[second]))


def _higher_first(scores: np.ndarray, pairs: Sequence[tuple[int, int]]) -> float:
    return float(np.mean(higher_first(scores, pairs)))
