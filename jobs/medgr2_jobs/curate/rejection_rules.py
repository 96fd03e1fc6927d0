"""What rules a candidate out whatever the strategy: one table, applied from the top; every reason is written down.

The whole way of a candidate, and the reason it ends with where it ends:

1. `RULES`, below: it cannot be used, would contaminate a test, or is there already.
2. The strategy (`selection.py`): `not_scored`, `below_threshold`, `not_in_top_k`, `not_in_random_k`.
3. Of those that are left (`selection.py`): `guessable` (`option_prior_filter.py`), `balance` (`balance.py`).
4. The expert: `vetoed`, `wrong_answer`. Last of all, so that a review takes away and never brings in what nobody has
   looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from medgr2_api.curation import ResolvedCuration
from medgr2_api.plugin import PluginGroup, PluginRef

from .. import plugins
from ..duplicates.near import NearIndex, exact_duplicates, triplet_key
from ..duplicates.text_fingerprint import text_of
from ..errors import ConfigError
from ..store.rows.candidates import Candidate, CandidateOutcome, Triplet, triplet_of
from ..store.rows.prepared import Image, Item
from . import contamination
from .training_set import TrainingRow

Reasons = dict[str, list[str]]
Rejections = Iterable[tuple[str, str]]
"""(triplet id, reason)."""

OUTCOME = "outcome"
NEAR_DUPLICATE = "near_duplicate"


@dataclass(frozen=True)
class Facts:
    """What the rules look at."""

    candidates: Sequence[Candidate]
    scores: Mapping[str, float]
    training: Sequence[TrainingRow]
    """D_gen before this iteration."""
    images: Sequence[Image]
    items: Sequence[Item]
    curation: ResolvedCuration

    @cached_property
    def usable(self) -> list[Triplet]:
        """The triplets of the candidates that have a usable answer."""
        return [triplet for row in self.candidates if (triplet := triplet_of(row))]

    @cached_property
    def phashes(self) -> dict[str, str]:
        """Perceptual hash of each image that has one."""
        return {row.image_sha256: row.phash for row in self.images if row.phash}

    @cached_property
    def held_images(self) -> dict[str, set[str]]:
        """Images that must never be trained on, by what holds them."""
        return contamination.held_images(self.images, self.items)

    @property
    def held_hamming(self) -> int:
        """Most bits in which an image may differ from a held-out one and still be taken for it."""
        near = self.curation.near_duplicates
        return max(contamination.HAMMING, near.image_hamming if near else 0)

    @cached_property
    def near(self) -> NearIndex | None:
        """Which usable candidates are near each other, and near D_gen; None: nobody asked."""
        limits = self.curation.near_duplicates
        others = [] if self.curation.allow_overlap else self.training
        return NearIndex(self.usable, others, self.phashes, limits) if limits else None

    @cached_property
    def best_first(self) -> list[int]:
        """Places in `usable`: the best scored first, of equals the first."""
        scores = [self.scores.get(row.triplet_id, float("-inf")) for row in self.usable]
        return sorted(range(len(scores)), key=lambda place: -scores[place])


def _outcomes(facts: Facts, _: Reasons) -> Iterator[tuple[str, str]]:
    """The generator's answer is no triplet."""
    for row in facts.candidates:
        if row.outcome is not CandidateOutcome.OK:
            yield row.triplet_id, f"{OUTCOME}:{row.outcome}"


def _held_images(facts: Facts, _: Reasons) -> Iterator[tuple[str, str]]:
    """It shows an image of a benchmark, or of the validation split."""
    for kind, images in facts.held_images.items():
        yield from ((r.triplet_id, f"{kind}_image") for r in facts.candidates if r.image_sha256 in images)


def _near_held_images(facts: Facts, _: Reasons) -> Iterator[tuple[str, str]]:
    """It shows nearly such an image."""
    image_hashes = {row.image_sha256 for row in facts.candidates}
    for kind, images in facts.held_images.items():
        near = contamination.near_images(image_hashes, images, facts.phashes, facts.held_hamming)
        yield from ((r.triplet_id, f"{kind}_near_image") for r in facts.candidates if r.image_sha256 in near)


def _held_texts(facts: Facts, _: Reasons) -> Iterator[tuple[str, str]]:
    """It asks a held-out question with the same options and answer, whatever its image."""
    held = contamination.held_texts(facts.items, facts.phashes, facts.held_hamming)
    if any(held.values()):
        candidate_texts = [(row.triplet_id, text_of(row)) for row in facts.usable]
        for kind, texts in held.items():
            yield from ((name, f"{kind}_text") for name, text in candidate_texts if text in texts)


def _duplicates(facts: Facts, _: Reasons) -> Iterator[tuple[str, str]]:
    """The batch has the same question about the same image, with a better score or earlier."""
    doubles = exact_duplicates(facts.usable, facts.scores)
    return ((row.triplet_id, "duplicate") for row in facts.usable if row.triplet_id in doubles)


def _overlaps(facts: Facts, _: Reasons) -> Iterator[tuple[str, str]]:
    """D_gen has the same question about the same image."""
    taken = set() if facts.curation.allow_overlap else {triplet_key(row) for row in facts.training}
    return ((row.triplet_id, "overlap") for row in facts.usable if triplet_key(row) in taken)


def _near_overlaps(facts: Facts, reasons: Reasons) -> Iterator[tuple[str, str]]:
    """D_gen has nearly the same question about nearly the same image (and not the very same)."""
    if facts.near:
        near = facts.near.near_others()
        for row, is_near in zip(facts.usable, near, strict=True):
            if is_near and "overlap" not in reasons[row.triplet_id]:
                yield row.triplet_id, "near_overlap"


def _near_duplicates(facts: Facts, reasons: Reasons) -> Iterator[tuple[str, str]]:
    """The batch has nearly the same (and not the very same), better or earlier, and nothing rules that one out."""
    if facts.near:
        names = [row.triplet_id for row in facts.usable]
        near = facts.near.near_kept(facts.best_first, np.array([not reasons[name] for name in names], np.bool_))
        for name, is_near in zip(names, near, strict=True):
            if is_near and "duplicate" not in reasons[name]:
                yield name, NEAR_DUPLICATE


Rule = Callable[[Facts, Reasons], Rejections]
"""Told the facts and what the rules before it found (not to be changed), it names candidates and why they go."""

#: Reason → what finds it, in this order.
RULES: dict[str, Rule] = {
    "outcome:…": _outcomes,
    "benchmark_image, validation_image": _held_images,
    "benchmark_near_image, validation_near_image": _near_held_images,
    "benchmark_text, validation_text": _held_texts,
    "duplicate": _duplicates,
    "overlap": _overlaps,
    "near_overlap": _near_overlaps,
}
#: After those of other packages: what they rule out stands for nothing near it.
LAST: Rule = _near_duplicates


def ruled_out(facts: Facts) -> Reasons:
    """The reasons against each candidate, by triplet id; none against what may be kept.

    Raises:
        ConfigError: a rule of another package is not there, or names what is no candidate.
    """
    reasons: Reasons = {row.triplet_id: [] for row in facts.candidates}
    further = [_of_plugin(plugin) for plugin in facts.curation.further_rules]
    for rule in (*RULES.values(), *further, LAST):
        for name, reason in list(rule(facts, reasons)):
            reasons[name].append(reason)
    return reasons


def _of_plugin(plugin: PluginRef) -> Rule:
    """A rule of another package; its reasons begin with its name."""
    where = f"curation.rules[{plugin.name}]"
    rule: Rule = plugins.load(PluginGroup.CURATION_RULES, plugin, where)

    def named(facts: Facts, reasons: Reasons) -> Iterator[tuple[str, str]]:
        for name, reason in rule(facts, reasons):
            if name not in reasons:
                raise ConfigError(f"{where}: rejects {name!r}, which is the id of no candidate; correct the plugin")
            yield name, f"{plugin.name}:{reason}"

    return named
