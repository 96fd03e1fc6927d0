"""From predictions to figures with intervals. numpy only: the report and `compare` use this without torch."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medgr2_api.metrics import is_headline

from ..prompts import answers
from ..store.rows import Split
from ..store.rows.evaluation import EvalCondition, Prediction, Scoring
from ..store.rows.prepared import Item
from .rank_statistics import auroc

RESAMPLES = 2000
_CHUNK = 250  # resamples at a time: bounds memory at _CHUNK x clusters
_LEVEL = 0.95
_MIN_SUPPORT = 5  # questions on either side that an AUROC needs

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap_sums(sums: Floats, clusters: int, seed: int, resamples: int = RESAMPLES) -> Floats:
    """Column totals over clusters drawn with replacement.

    Args:
        sums: (G, C): what each of G clusters contributes to each of C totals.
        clusters: G.
        seed: the same seed and G draw the same clusters, whatever the columns: totals of several calls stay paired.
        resamples: R.

    Returns:
        (R, C).
    """
    random = np.random.default_rng(seed)
    resampled = []
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        picks = random.integers(clusters, size=(rows, clusters)) + np.arange(rows)[:, None] * clusters
        times = np.bincount(picks.ravel(), minlength=rows * clusters).reshape(rows, clusters)
        resampled.append(times.astype(np.float64) @ sums)
    return np.concatenate(resampled)


def cluster_mean(values: ArrayLike, clusters: Sequence[str], seed: int) -> Interval:
    """Mean of `values` (N,) with its percentile interval; `clusters` (N,) names what is drawn together (the image)."""
    data = np.asarray(values, dtype=np.float64)
    if not data.size:
        raise ValueError("no values")
    codes, count = _codes(clusters)
    sums = np.stack([_sums(codes, data, count), _sums(codes, np.ones(len(codes)), count)], axis=1)
    totals = bootstrap_sums(sums, count, seed)
    low, high = _percentiles(totals[:, 0] / totals[:, 1])
    return Interval(float(data.mean()), float(low), float(high))


class ItemSet:
    """The questions of one (split, benchmark), for all figures of all predictions on them.

    Every slice is a union of cells (question type x modality); the bootstrap draws images once and sums cells, so the
    cost hardly depends on how many checkpoints, conditions and slices there are.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        self._clusters, self._count = _codes([item.image_sha256 for item in items])
        types, self.types = _named([item.question_type for item in items])
        modalities, self.modalities = _named([item.modality for item in items])
        self._shape = (len(self.types), len(self.modalities))
        self._cells = types * len(self.modalities) + modalities
        self._ones = self._by_cluster(np.ones(len(items)))

    def shares(self, outcomes: Floats, seed: int) -> list[list[Share]]:
        """Means of each row of `outcomes` in each slice, with intervals from images drawn with replacement.

        Args:
            outcomes: (P, N) values in [0, 1], such as which answers are right.
            seed: of the bootstrap.

        Returns:
            P lists: slice `all`, then each modality, then each question type.
        """
        cells = np.concatenate([self._ones, *map(self._by_cluster, outcomes)], axis=1)
        shape = (len(outcomes) + 1, *self._shape)
        totals = cells.sum(0).reshape(shape)
        resampled = bootstrap_sums(cells, self._count, seed).reshape(-1, *shape)
        images = (self._ones > 0).reshape(-1, *self._shape)
        return [
            [self._share(name, cut, totals[[0, row]], resampled[:, [0, row]], images) for name, cut in self._slices()]
            for row in range(1, len(outcomes) + 1)
        ]

    def _slices(self) -> list[tuple[str, tuple[slice, slice]]]:
        every = slice(None)
        slices = [("all", (every, every))]
        slices += [(f"modality={name}", (every, slice(i, i + 1))) for i, name in enumerate(self.modalities) if name]
        slices += [(f"question_type={name}", (slice(i, i + 1), every)) for i, name in enumerate(self.types) if name]
        return slices

    @staticmethod
    def _share(
        name: str, cut: tuple[slice, slice], totals: Floats, resampled: Floats, images: NDArray[np.bool_]
    ) -> Share:
        """One slice: `totals` (2, Q, M), `resampled` (R, 2, Q, M) hold counts and sums, `images` (G, Q, M) members."""
        count, value = totals[(slice(None), *cut)].sum(1)  # (M,) each
        counts, values = np.moveaxis(resampled[(slice(None), slice(None), *cut)].sum(2), 1, 0)  # (R, M) each
        present = count > 0
        per_modality = images[(slice(None), *cut)].any(1).sum(0)[present]  # images of each modality
        in_slice = int(images[(slice(None), *cut)].any((1, 2)).sum())
        micro = _interval(value.sum() / count.sum(), _ratio(values.sum(1), counts.sum(1)), [in_slice])
        by_modality = _ratio(values[:, present], counts[:, present])
        macro = _interval(np.mean(value[present] / count[present]), _mean_known(by_modality), per_modality)
        return Share(name, int(count.sum()), micro, macro)

    def _by_cluster(self, values: Floats) -> Floats:
        """(N,) → (G, Q * M): sums per image and cell."""
        width = self._shape[0] * self._shape[1]
        flat = _sums(self._clusters * width + self._cells, values, self._count * width)
        return flat.reshape(self._count, width)

    def macro_f1(self, predictions: Sequence[Prediction]) -> float | None:
        """Mean over answer texts of the F1 of naming that text.

        A class is a normalised option text (a letter's place carries no meaning); only texts that are right at least
        once count. An answer that could not be parsed is a miss of the right text. (By hand for the same reason as
        `rank_statistics`; a test compares with sklearn's.)
        """
        gold = [_text(item, item.answer_index) for item in self.items]
        named_slices = [
            None if prediction.predicted is None else _text(item, prediction.predicted)
            for item, prediction in zip(self.items, predictions, strict=True)
        ]
        scores = []
        for text in sorted(set(gold)):
            hits = sum(a == b == text for a, b in zip(gold, named_slices, strict=True))
            scores.append(2 * hits / (gold.count(text) + named_slices.count(text)))
        return float(np.mean(scores)) if scores else None

    def auroc(self, predictions: Sequence[Prediction]) -> float | None:
        """Mean one-vs-rest area under the ROC curve over answer texts.

        For each normalised option text, over the questions that offer it: does its probability (softmax over the
        question's options) rank the questions where it is right above those where it is not? Texts with fewer than
        five questions on either side are left out; None when none is left, or what was written was read.
        """
        offered: dict[str, list[tuple[float, bool]]] = defaultdict(list)
        for item, prediction in zip(self.items, predictions, strict=True):
            if prediction.scoring is not Scoring.OPTION_LOGPROB:
                return None
            values = np.asarray(prediction.option_logprobs, dtype=np.float64)
            weights = np.exp(values - values.max())
            for index, weight in enumerate(weights / weights.sum()):
                offered[_text(item, index)].append((float(weight), index == item.answer_index))
        areas = []
        for _, pairs in sorted(offered.items()):
            right = np.array([is_right for _, is_right in pairs])
            if min(right.sum(), (~right).sum()) < _MIN_SUPPORT:
                continue
            areas.append(auroc([probability for probability, _ in pairs], right))
        return float(np.mean(areas)) if areas else None


@dataclass(frozen=True)
class Share:
    """The mean of an outcome in a slice."""

    slice: str
    n: int
    micro: Interval
    """Over questions."""
    macro: Interval
    """Mean over modalities."""


#: Metrics of the questions as a whole, by name: from the answers of one run, in the order of the questions. None:
#: they do not allow it. A new metric is declared in `medgr2_api.metrics` and computed by a line here.
WHOLE: dict[str, Callable[[ItemSet, Sequence[Prediction]], float | None]] = {
    "macroF1": ItemSet.macro_f1,
    "auroc": ItemSet.auroc,
}


@dataclass(frozen=True, slots=True)
class Measurement:
    """One figure of one checkpoint: a row of `results.json`."""

    iteration: int
    split: Split
    benchmark: str
    checkpoint: str
    condition: EvalCondition
    scoring: Scoring
    slice: str
    """all, modality=… or question_type=…"""
    metric: str
    value: float
    low: float | None
    """Bounds of the 95 % interval; None where none is computed."""
    high: float | None
    n: int
    """Questions."""

    @property
    def interval(self) -> Interval:
        """The value with its bounds.

        Raises:
            ValueError: this metric has none.
        """
        if self.low is None or self.high is None:
            raise ValueError(f"{self.metric} of {self.checkpoint} has no interval")
        return Interval(self.value, self.low, self.high)


def read(document: str) -> list[Measurement]:
    """The rows of a `results.json`."""
    enums = {"split": Split, "condition": EvalCondition, "scoring": Scoring}
    return [
        Measurement(**row | {name: kind(row[name]) for name, kind in enums.items()}) for row in json.loads(document)
    ]


def headline(results: Iterable[Measurement], scoring: Scoring = Scoring.OPTION_LOGPROB) -> list[Measurement]:
    """The headline figures, under every condition. Each is made once, by the evaluation, with its interval: whoever
    shows one takes it from here, so that no two say otherwise."""
    return [row for row in results if is_headline(asdict(row), scoring)]


class QuestionSet(NamedTuple):
    """Which questions a measurement is about."""

    split: Split
    benchmark: str
    """Empty for validation."""


class _Run(NamedTuple):
    """Whose answers, to what was shown, read in which way."""

    checkpoint: str
    condition: EvalCondition
    scoring: Scoring


_CHANCE = _Run("base", EvalCondition.CHANCE, Scoring.OPTION_LOGPROB)  # needs no model


def measurements(
    items: ItemSet,
    predictions: Iterable[Prediction],
    *,
    iteration: int,
    questions: QuestionSet,
    seed: int,
    chance: bool,
) -> list[Measurement]:
    """All figures of one set of questions.

    Args:
        items: its questions.
        predictions: the answers to them; every (checkpoint, condition, scoring) covers all of them.
        iteration: which one.
        questions: which set it is.
        seed: of the bootstrap.
        chance: whether to add the rows of condition `chance` (checkpoint `base`).
    """
    by_item: dict[_Run, dict[str, Prediction]] = defaultdict(dict)
    for row in predictions:
        by_item[_Run(row.checkpoint, row.condition, row.scoring)][row.item_id] = row
    runs = {run: [answered[item.item_id] for item in items.items] for run, answered in by_item.items()}

    outcomes: list[tuple[_Run, str, list[float]]] = []  # (run, what it is, N values)
    if chance:
        outcomes.append((_CHANCE, "Accuracy", [1 / len(item.options) for item in items.items]))
    for run, rows in runs.items():
        outcomes.append((run, "Accuracy", [row.correct for row in rows]))
        if run.scoring is Scoring.GREEDY:
            outcomes.append((run, "parseFailures", [row.predicted is None for row in rows]))

    result: list[Measurement] = []

    def add(run: _Run, share: Share, metric: str, value: float, low: float | None, high: float | None) -> None:
        bounds = [None if bound is None or np.isnan(bound) else round(bound, 6) for bound in (low, high)]
        result.append(Measurement(
            iteration=iteration, split=questions.split, benchmark=questions.benchmark, checkpoint=run.checkpoint,
            condition=run.condition, scoring=run.scoring, slice=share.slice, metric=metric, value=round(value, 6),
            low=bounds[0], high=bounds[1], n=share.n,
        ))  # fmt: skip

    every = items.shares(np.array([values for *_, values in outcomes], dtype=np.float64), seed)
    for (run, kind, _), shares in zip(outcomes, every, strict=True):
        for share in shares:
            if kind == "parseFailures":
                add(run, share, kind, *share.micro)
                continue
            add(run, share, "microAccuracy", *share.micro)
            if not share.slice.startswith("modality="):
                add(run, share, "macroAccuracy", *share.macro)
        if kind == "Accuracy" and run in runs:
            for metric, compute in WHOLE.items():
                value = compute(items, runs[run])
                if value is not None:
                    add(run, shares[0], metric, value, None, None)
    return result


def _interval(value: float, resampled: Floats, clusters: ArrayLike) -> Interval:
    """Percentile interval; where all clusters agree, and so resampling never varies, the exact bound for them."""
    low, high = _percentiles(resampled)
    if value in (0.0, 1.0):
        exact = float(np.mean(((1 - _LEVEL) / 2) ** (1 / np.asarray(clusters, dtype=np.float64))))
        low, high = (exact, 1.0) if value == 1.0 else (0.0, 1 - exact)
    return Interval(float(value), float(low), float(high))


def _percentiles(resampled: Floats) -> tuple[float, float]:
    defined = resampled[~np.isnan(resampled)]
    low, high = np.percentile(defined, [50 * (1 - _LEVEL), 50 * (1 + _LEVEL)])
    return float(low), float(high)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Elementwise; nan where a slice got no question in a resample."""
    result = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return result


def _mean_known(values: Floats) -> Floats:
    """Mean over the last axis of what is not nan; nan where all are."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0.0).sum(-1), defined.sum(-1).astype(np.float64))


def _sums(codes: NDArray[np.int64], values: Floats, count: int) -> Floats:
    """(N,) → (count,): sum of the values of each code."""
    return np.bincount(codes, values, count).astype(np.float64)


def _text(item: Item, index: int) -> str:
    return answers.normalise(item.options[index])


def _named(column: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
    """Codes (N,) of a column's values, and the sorted values."""
    values = sorted(set(column))
    at = {value: index for index, value in enumerate(values)}
    return np.array([at[value] for value in column], dtype=np.int64), values


def _codes(names: Sequence[str]) -> tuple[NDArray[np.int64], int]:
    """Codes (N,) of names in order of appearance, and how many there are."""
    at: dict[str, int] = {}
    codes = np.array([at.setdefault(name, len(at)) for name in names], dtype=np.int64)
    return codes, len(at)
