"""The conditions under which a checkpoint is measured: the real image, and controls that take information away.

Every choice made here depends on the data alone (not on iteration, cycle or seed), so the rows of two iterations or of
two cycles answer exactly the same questions and may be compared pairwise.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from medgr2_api.evaluation import Control
from medgr2_api.training_spec import AnswerFormat

from ..models.image_check import BlankEncoder as BlankEncoder
from ..models.vlm import PromptResponse
from ..prompts import answers
from ..prompts.option_counts import OptionCounts, View, points, views
from ..store.rows.evaluation import EvalCondition
from ..store.rows.prepared import Item

_SMOOTHING = 1.0  # pseudo-questions that each option text starts with, right as often as chance
_ENOUGH = 50  # training questions of a source and modality, or of a modality, to tell what answers them best
_SAMPLE = 2000  # of them that are asked
_ALL, _MODALITY, _SOURCE = "all", "modality", "source and modality"
_VIEWS = views(_ALL, _MODALITY, _SOURCE)


CONDITION_OF: dict[Control, EvalCondition] = {
    Control.BLANK_IMAGE: EvalCondition.BLANK,
    Control.SHUFFLED_IMAGE: EvalCondition.SHUFFLED,
    Control.OPTIONS_ONLY: EvalCondition.OPTIONS_ONLY,
    Control.OPTION_PRIOR: EvalCondition.OPTION_PRIOR,
}


def derangement(items: Iterable[Item]) -> dict[str, str] | None:
    """For every image another one: the next of its modality in a fixed random order.

    An image that is alone in its modality gets one of another modality. Questions that the modality alone answers stay
    answerable, so the accuracy under `shuffled` may lie above chance without the model reading the image's content.

    Returns:
        sha256 → sha256, never itself; None when there are fewer than two images.
    """
    modality: dict[str, str] = {}
    for item in items:
        modality.setdefault(item.image_sha256, item.modality)
    if len(modality) < 2:
        return None
    # names are hashes, so hashing them once more is a random order that depends on nothing else
    order = sorted(modality, key=lambda sha256: hashlib.sha256(f"shuffled/{sha256}".encode()).digest())
    result = dict(zip(order, [*order[1:], order[0]], strict=True))
    groups = defaultdict(list)
    for sha256 in order:
        groups[modality[sha256]].append(sha256)
    for group in groups.values():
        if len(group) > 1:
            result.update(zip(group, [*group[1:], group[0]], strict=True))
    return result


def rows(condition: EvalCondition, items: Sequence[Item], answer_format: AnswerFormat) -> list[PromptResponse] | None:
    """What the model is asked under a condition, one row per item.

    `blank` differs from `real` only in the encoder (`BlankEncoder`). None when the condition cannot be made: shuffled
    with a single image.
    """
    if condition is EvalCondition.OPTIONS_ONLY:
        return [PromptResponse(None, answers.prompt_text("", item.options, answer_format).lstrip()) for item in items]
    donors = derangement(items) if condition is EvalCondition.SHUFFLED else {}
    if donors is None:
        return None
    prompts = [answers.prompt_of(item, answer_format) for item in items]
    return [PromptResponse(donors.get(prompt.image_sha256, prompt.image_sha256), prompt.text) for prompt in prompts]


class OptionPrior:
    """P(right | option text) from the training split: neither image nor question, only what tends to be right.

    Of each source and modality it knows the strongest way to guess: texts as they are spelled or normalised, counted
    over all training questions, those of the modality, or those of source and modality; that by which the training
    questions of this source and modality (of the modality, of all, where there are too few) are answered best, each
    left out in turn. Some benchmarks fall to it: on public splits of OmniMedVQA it scores 95 % (docs/decisions.md, 9).
    """

    def __init__(self, training: Iterable[Item]) -> None:
        self._counts = {view: OptionCounts() for view in _VIEWS}
        self._training: dict[tuple[str, ...], list[Item]] = defaultdict(list)
        for item in training:
            for scope, group in _groups(item).items():
                self._training[scope, *group].append(item)
            for view, counts in self._counts.items():
                counts.add(_groups(item)[view.scope], view.texts(item.options), item.answer_index)
        self._chosen: dict[tuple[str, ...], View] = {}

    def logprobs(self, item: Item) -> list[float]:
        """log P(right | text) of each option, smoothed towards chance, which an unseen text gets."""
        view = self._view(item)
        rates = self._counts[view].rates(_groups(item)[view.scope], view.texts(item.options), _SMOOTHING)
        return [math.log(rate) for rate in rates]

    def predict(self, item: Item) -> tuple[int, list[float]]:
        """The likeliest option and all log-probabilities; ties are drawn by a hash of item and option, so that no
        position is preferred."""
        scores = self.logprobs(item)
        best = [index for index, score in enumerate(scores) if np.isclose(score, max(scores))]

        def lot(index: int) -> bytes:
            return hashlib.sha256(f"{item.item_id}/{item.options[index]}".encode()).digest()

        return min(best, key=lot), scores

    def _view(self, item: Item) -> View:
        """The view that answers the training questions like this one best; of equals the coarsest."""
        groups = _groups(item)
        scopes = [scope for scope in groups if len(self._training[scope, *groups[scope]]) >= _ENOUGH] or [_ALL]
        finest = scopes[-1], *groups[scopes[-1]]
        if finest not in self._chosen:
            asked = self._training[finest][:: max(1, len(self._training[finest]) // _SAMPLE)]
            allowed = [view for view in _VIEWS if view.scope in scopes]
            self._chosen[finest] = max(allowed, key=lambda view: round(self._left_out(view, asked), 6))
        return self._chosen[finest]

    def _left_out(self, view: View, asked: Sequence[Item]) -> float:
        """How many training questions a view answers rightly, each without its own say."""
        counts, right = self._counts[view], 0.0
        for item in asked:
            group, texts = _groups(item)[view.scope], view.texts(item.options)
            counts.add(group, texts, item.answer_index, -1)
            right += points(counts.rates(group, texts, _SMOOTHING), item.answer_index)
            counts.add(group, texts, item.answer_index)
        return right


def _groups(item: Item) -> dict[str, tuple[str, ...]]:
    """Among which questions an item is counted, by scope, the coarsest first."""
    return {_ALL: (), _MODALITY: (item.modality,), _SOURCE: (item.source, item.modality)}
