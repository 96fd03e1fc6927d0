"""What must never be trained on: images and questions of benchmarks and validation split (docs/decisions.md, 8)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from ..duplicates import phash_index
from ..duplicates.text_fingerprint import NormalisedText, text_of
from ..store.rows import Split
from ..store.rows.prepared import Image, Item

BENCHMARK, HELD_BACK = "benchmark", "validation"
#: The least that counts as a near-duplicate image here, whatever curation.nearDuplicates says.
HAMMING = 4


def _kind(split: Split) -> str | None:
    return None if split is Split.TRAIN else HELD_BACK if split is Split.VALIDATION else BENCHMARK


def held_images(images: Iterable[Image], items: Iterable[Item]) -> dict[str, set[str]]:
    """Images (sha256) that must never be trained on, by what holds them."""
    held: dict[str, set[str]] = {BENCHMARK: set(), HELD_BACK: set()}
    rows: list[Image | Item] = [*images, *items]
    for row in rows:
        if kind := _kind(row.split):
            held[kind].add(row.image_sha256)
    return held


def near_images(images: set[str], held: set[str], phashes: Mapping[str, str], limit: int) -> set[str]:
    """Those of the images that are within `limit` bits of a held-out one, and not held out themselves."""
    left = sorted(image for image in images - held if phashes.get(image))
    right = sorted({phashes[image]: image for image in sorted(held) if phashes.get(image)}.values())
    near = phash_index.within(phash_index.codes(left, phashes), phash_index.codes(right, phashes), limit)
    return {left[place] for place in np.flatnonzero(near)}


def held_texts(items: Iterable[Item], phashes: Mapping[str, str], limit: int) -> dict[str, set[NormalisedText]]:
    """Texts that give a held-out question away, by what holds it.

    Question, options and answer must all agree, and the text must belong to one image: templates ("Which modality is
    this?" with the usual options) repeat legitimately, and a model that has seen one elsewhere knows nothing about the
    benchmark. A text is a template when the prepared items, of whatever split, ask it of images that differ in more
    than `limit` bits. Items on images without a perceptual hash do not count: phantoms' questions are all templates.
    """
    places_by_text: dict[NormalisedText, list[tuple[int, str | None]]] = defaultdict(list)
    for item in items:
        phash, text = phashes.get(item.image_sha256), text_of(item)
        if phash and text.answer:
            places_by_text[text].append((int(phash, 16), _kind(item.split)))
    held: dict[str, set[NormalisedText]] = {BENCHMARK: set(), HELD_BACK: set()}
    for text, places in places_by_text.items():
        first = places[0][0]
        if all((first ^ phash).bit_count() <= limit for phash, _ in places):
            for _, kind in places:
                if kind:
                    held[kind].add(text)
    return held
