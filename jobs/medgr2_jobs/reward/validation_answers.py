"""How R answers the validation questions: what score, filter and GRPO use it for (docs/decisions.md, 7).

The grades of D_grade also ask whether R orders paraphrases and torn texts rightly. A model that learnt its few images
by heart does that as well as before, while it tells right from wrong answers worse; only the answers show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..evaluate.metrics import Interval, cluster_mean
from ..evaluate.rank_statistics import auroc
from ..store.rows.prepared import GradedRow
from ..store.rows.training import RewardAnswer
from .metrics import higher_first, image_pairs

_RESAMPLES = 2000
_SEED = 0  # of the bootstrap: a gate must not change when it is looked at again
_CELLS = 2_000_000  # resamples x rows at a time: bounds memory
_LEVEL = 0.95

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ValidationAnswers:
    """What one R says of the validation questions; of two models on the same questions."""

    images: tuple[str, ...]
    """(N) image of each question."""
    scores: tuple[tuple[float, ...], ...]
    """(N) R's score of every option."""
    gold: tuple[int, ...]
    """(N) index of the right option."""
    pair_images: tuple[str, ...] = ()
    """(P) own image of each right text that is also shown beside another image."""
    own_image_higher: tuple[float, ...] = ()
    """(P) 1 where the text scores higher beside its own image, .5 where both are equal, else 0."""

    @classmethod
    def of(
        cls, answers: Sequence[RewardAnswer], heldout: Sequence[GradedRow], heldout_scores: Floats
    ) -> ValidationAnswers:
        """From the options' scores and from the held-out grades, which have right texts beside other images.

        Args:
            answers: a row per validation question.
            heldout: held-out rows of D_grade.
            heldout_scores: (rows,) R's scores of them.
        """
        pairs = image_pairs(heldout, [row.item_id for row in heldout])
        return cls(
            tuple(row.image_sha256 for row in answers),
            tuple(row.option_scores for row in answers),
            tuple(row.answer_index for row in answers),
            tuple(heldout[own].image_sha256 for own, _ in pairs),
            tuple(higher_first(heldout_scores, pairs).tolist()),
        )

    def measures(self) -> dict[str, float]:
        """answer_auroc: right options against wrong ones, all questions together; answer_accuracy: share of questions
        whose right option scores highest (among equals, its chance); image_sensitivity: as in `reward_metrics`. What
        the rows do not allow to measure is left out."""
        found: dict[str, float] = {}
        if self.scores:
            right, values = self._options()
            found["answer_auroc"] = auroc(values, right)
            found["answer_accuracy"] = float(np.mean(self._hits()))
        if self.own_image_higher:
            found["image_sensitivity"] = float(np.mean(self.own_image_higher))
        return found

    def gain_over(self, old: ValidationAnswers) -> dict[str, Interval]:
        """This model's measures less the old one's on the same questions, each with its paired 95 % interval from
        images drawn with replacement."""
        found: dict[str, Interval] = {}
        if self.scores:
            found["answer_auroc"] = self._auroc_gain(old)
            found["answer_accuracy"] = cluster_mean(self._hits() - old._hits(), self.images, _SEED)
        if self.own_image_higher:
            looks = np.array(self.own_image_higher) - np.array(old.own_image_higher)
            found["image_sensitivity"] = cluster_mean(looks, self.pair_images, _SEED)
        return found

    def _options(self) -> tuple[NDArray[np.bool_], Floats]:
        """Of all options: whether it is the right one, and its score."""
        right = [at == gold for options, gold in zip(self.scores, self.gold, strict=True) for at in range(len(options))]
        return np.array(right), np.array([value for options in self.scores for value in options])

    def _hits(self) -> Floats:
        """(N,) chance that each question's right option is chosen: 1 where it alone scores highest."""
        return np.array([
            (options[gold] == max(options)) / options.count(max(options))
            for options, gold in zip(self.scores, self.gold, strict=True)
        ])  # fmt: skip

    def _auroc_gain(self, old: ValidationAnswers) -> Interval:
        (right, new_values), (_, old_values) = self._options(), old._options()
        _, image = np.unique(np.array(self.images), return_inverse=True)
        cluster = np.repeat(image, [len(options) for options in self.scores])
        ours, theirs = _Ranking(new_values, right), _Ranking(old_values, right)
        draw, count, differences = np.random.default_rng(_SEED), int(image.max()) + 1, []
        at_once = max(1, _CELLS // len(cluster))
        for start in range(0, _RESAMPLES, at_once):
            some = min(at_once, _RESAMPLES - start)
            picks = draw.integers(count, size=(some, count)) + np.arange(some)[:, None] * count
            times = np.bincount(picks.ravel(), minlength=some * count).reshape(some, count)
            weights = times[:, cluster].astype(np.float64)
            differences.append(ours.auroc(weights) - theirs.auroc(weights))
        tail = (1 - _LEVEL) / 2
        low, high = np.quantile(np.concatenate(differences), (tail, 1 - tail))
        return Interval(auroc(new_values, right) - auroc(old_values, right), float(low), float(high))


class _Ranking:
    """Rows sorted by score once; AUROC under many weightings of them."""

    def __init__(self, scores: Floats, right: NDArray[np.bool_]) -> None:
        self._order = np.argsort(scores, kind="stable")
        ordered = scores[self._order]
        self._starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])  # of each run of equal scores
        self._right = right[self._order]

    def auroc(self, weights: Floats) -> Floats:
        """(R, rows) weights → (R,): the share of (right, wrong) pairs in order, ties half."""
        ordered = weights[:, self._order]
        positive = np.add.reduceat(ordered * self._right, self._starts, axis=1)
        negative = np.add.reduceat(ordered * ~self._right, self._starts, axis=1)
        below = np.cumsum(negative, axis=1) - negative
        pairs = positive.sum(1) * negative.sum(1)
        in_order = (positive * (below + 0.5 * negative)).sum(1)
        return np.asarray(in_order / pairs, dtype=np.float64)
