"""Dividing images into train, validation and test, and keeping benchmark images out of training.

The unit is the stored image (its sha256): all questions of an image, from whatever source, stand on one side. By
Patient or by Source all images of one stay together, too; an image that two of them hold joins the two. The order that
decides is the sha256 of seed and image, so the result depends on nothing but the seed and the images.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from medgr2_api.data import OnLeak, SplitSpec

from ..errors import DataError
from ..store.rows import Split

_SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Leak:
    """Training images that a benchmark holds too."""

    benchmark: str
    images: frozenset[str]
    """sha256 of each."""
    share: float
    """… as a share of the benchmark's images: how much of the test set training would have seen."""
    near: frozenset[str] = frozenset()
    """Those of them that only look like one of the benchmark's: other bytes, nearly the same perceptual hash."""


def lot(name: str) -> int:
    """A number that depends on nothing but a name: for choosing evenly, and always the same."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def order(seed: int, images: Iterable[str]) -> list[str]:
    """The images in their seeded order."""
    return sorted(set(images), key=lambda sha256: hashlib.sha256(f"{seed}/{sha256}".encode()).digest())


def together(units: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """For each image the one that stands for all that must stay together with it.

    Args:
        units: images (sha256) of each patient, or of each source. An image may be in several, which joins them.
    """
    parent: dict[str, str] = {}

    def root(image: str) -> str:
        while parent[image] != image:
            parent[image] = parent[parent[image]]
            image = parent[image]
        return image

    for images in units.values():
        first = ""
        for image in images:
            parent.setdefault(image, image)
            first = first or image
            low, high = sorted((root(first), root(image)))
            parent[high] = low
    return {image: root(image) for image in parent}


def assign(
    sources: Sequence[Iterable[str]], shares: SplitSpec, seed: int, joined: Mapping[str, str] | None = None
) -> dict[str, Split]:
    """The split of every image.

    Each source is divided by itself, so that each contributes its share; an image that two sources hold keeps the
    side that the first gave it.

    Args:
        sources: the images (sha256) of each source that has questions.
        shares: of validation and test; one above 0 gets at least one image where there are enough.
        seed: decides the order.
        joined: as `together` gives it; an image that is not in it stands alone. Groups are dealt whole, so shares
            are met as nearly as the groups allow: a split takes groups, none twice as large as what it lacks, until
            it has its share; one that found none gets the smallest there is. One group is always left to train on.
    """
    joined = joined or {}
    members: dict[str, list[str]] = defaultdict(list)
    for image, first in joined.items():
        members[first].append(image)
    assigned: dict[str, Split] = {}
    for images in sources:
        groups = list(dict.fromkeys(joined.get(image, image) for image in images if image not in assigned))
        sizes = {group: len(members.get(group, [group])) for group in groups}
        ordered = order(seed, groups)
        total = sum(sizes.values())
        test = _count(shares.test_fraction, total)
        validation = min(_count(shares.validation_fraction, total), max(0, total - test - 1))
        counts = {Split.TEST: test, Split.VALIDATION: validation}
        for group, held in _deal(ordered, sizes, counts).items():
            for image in members.get(group, [group]):
                assigned.setdefault(image, held)
    return assigned


def _deal(ordered: Sequence[str], sizes: Mapping[str, int], counts: Mapping[Split, int]) -> dict[str, Split]:
    """The split of each group, in the order of `ordered`."""
    dealt: dict[str, Split] = {}
    for held, count in counts.items():
        left = [group for group in ordered if group not in dealt]
        assigned_count = 0
        for group in left:
            if assigned_count >= count or len(dealt) == len(ordered) - 1:
                break
            if sizes[group] <= 2 * (count - assigned_count):
                dealt[group] = held
                assigned_count += sizes[group]
        if count and not assigned_count and len(dealt) < len(ordered) - 1:
            dealt[min(left, key=lambda group: sizes[group])] = held
    return {group: dealt.get(group, Split.TRAIN) for group in ordered}


def leaks(
    training: set[str],
    benchmark: str,
    images: set[str],
    on_leak: OnLeak,
    names: Mapping[str, str],
    near: set[str] | None = None,
) -> Leak:
    """Which training images `benchmark` also holds.

    Args:
        training: sha256 of every image of every source.
        benchmark: its name.
        images: sha256 of its images.
        on_leak: Drop or Fail.
        names: what to call a training image in a message.
        near: training images that look like one of the benchmark's.

    Raises:
        DataError: there are some and `on_leak` is Fail; the message names the first few.
    """
    equal = training & images
    alike = (near or set()) - equal
    common = equal | alike
    if common and on_leak is OnLeak.FAIL:
        examples = ", ".join(sorted(names[sha256] for sha256 in common)[:_SHOWN])
        more = f" and {len(common) - _SHOWN} more" if len(common) > _SHOWN else ""
        raise DataError(
            f"benchmark {benchmark!r} (onLeak: Fail) holds {len(common)} image(s) that training has too: "
            f"{examples}{more}; remove them from the sources, or set onLeak: Drop"
        )
    return Leak(benchmark, frozenset(common), len(equal) / max(1, len(images)), frozenset(alike))


def digest(assigned: Mapping[str, Split]) -> str:
    """sha256 over the sorted lines `<image sha256> <split>`: two runs with this hash have the same splits."""
    lines = "".join(f"{sha256} {name}\n" for sha256, name in sorted(assigned.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _count(fraction: float, images: int) -> int:
    if fraction == 0 or images < 2:
        return 0
    return max(1, round(fraction * images))
