"""Dividing images into train, validation and test, and keeping benchmark images out of training.

The unit is the stored image (its sha256): all questions of an image, from whatever source, stand on one side. The
order that decides is the sha256 of seed and image, so the result depends on nothing but the seed and the images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from medgr2_api.data import OnLeak, Split, SplitBy

from ..errors import ConfigError, DataError

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Leak:
    """Training images that a benchmark holds too."""

    benchmark: str
    images: frozenset[str]
    """sha256 of each."""
    share: float
    """… as a share of the benchmark's images: how much of the test set training would have seen."""


def check(split: Split) -> None:
    """Raises ConfigError for what this version cannot do."""
    if split.by is not SplitBy.IMAGE:
        raise ConfigError(f"data.split.by: {split.by}: this version splits by Image only")


def order(seed: int, images: Iterable[str]) -> list[str]:
    """The images in their seeded order."""
    return sorted(set(images), key=lambda sha256: hashlib.sha256(f"{seed}/{sha256}".encode()).digest())


def assign(sources: Sequence[Iterable[str]], split: Split, seed: int) -> dict[str, str]:
    """The split of every image.

    Each source is divided by itself, so that each contributes its share; an image that two sources hold keeps the
    side that the first gave it.

    Args:
        sources: the images (sha256) of each source that has questions.
        split: shares of validation and test; a share above 0 gets at least one image where there are enough.
        seed: decides the order.
    """
    assigned: dict[str, str] = {}
    for images in sources:
        new = [sha256 for sha256 in order(seed, images) if sha256 not in assigned]
        test = _count(split.test_fraction, len(new))
        validation = min(_count(split.validation_fraction, len(new)), max(0, len(new) - test - 1))
        for position, sha256 in enumerate(new):
            held = TEST if position < test else VALIDATION if position < test + validation else TRAIN
            assigned[sha256] = held
    return assigned


def leaks(training: set[str], benchmark: str, images: set[str], on_leak: OnLeak, names: dict[str, str]) -> Leak:
    """Which training images `benchmark` also holds.

    Args:
        training: sha256 of every image of every source.
        benchmark: its name.
        images: sha256 of its images.
        on_leak: Drop or Fail.
        names: what to call a training image in a message.

    Raises:
        DataError: there are some and `on_leak` is Fail; the message names the first few.
    """
    common = training & images
    if common and on_leak is OnLeak.FAIL:
        shown = ", ".join(sorted(names[sha256] for sha256 in common)[:_SHOWN])
        more = f" and {len(common) - _SHOWN} more" if len(common) > _SHOWN else ""
        raise DataError(
            f"benchmark {benchmark!r} (onLeak: Fail) holds {len(common)} image(s) that training has too: "
            f"{shown}{more}; remove them from the sources, or set onLeak: Drop"
        )
    return Leak(benchmark, frozenset(common), len(common) / max(1, len(images)))


def digest(assigned: dict[str, str]) -> str:
    """sha256 over the sorted lines `<image sha256> <split>`: two runs with this hash have the same splits."""
    lines = "".join(f"{sha256} {name}\n" for sha256, name in sorted(assigned.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _count(fraction: float, images: int) -> int:
    if fraction == 0 or images < 2:
        return 0
    return max(1, round(fraction * images))
