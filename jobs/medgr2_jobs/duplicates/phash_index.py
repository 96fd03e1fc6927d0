"""Perceptual hashes of many images, and which of them lie within a few bits of each other (docs/decisions.md, 8).

Exact, in numpy. An image without a perceptual hash (phantoms: they are drawn alike) is close to itself only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BITS = 64
_SIDE, _LOW = 32, 8  # of the picture that is transformed, and of its lowest frequencies, one bit each
#: Narrower bands than this would be shared by nearly all images: then everything is compared with everything.
_LEAST_BAND = 8
_PAIRS = 1 << 20  # compared at once

Index = NDArray[np.intp]
Keys = NDArray[np.uint64]


def phash(image: Image.Image) -> str:
    """The perceptual hash: 64 bits of the lowest frequencies of an image's brightness, as 16 hex digits.

    Bit for bit that of the package imagehash, which would bring PyWavelets along for these lines.
    """
    from scipy.fft import dct  # not before it is needed

    pixels = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS))
    low = dct(dct(pixels, axis=0), axis=1)[:_LOW, :_LOW]
    return np.packbits(low > np.median(low)).tobytes().hex()


@dataclass(frozen=True)
class ImageCodes:
    """What N images are compared by."""

    bits: Keys
    """The perceptual hash; of an image without one, a hash of its name."""
    hashed: NDArray[np.bool_]
    """Whether it is a perceptual hash."""

    def __len__(self) -> int:
        return len(self.bits)

    def take(self, index: Index) -> ImageCodes:
        """The codes at these places."""
        return ImageCodes(self.bits[index], self.hashed[index])


def codes(images: Sequence[str], phashes: Mapping[str, str]) -> ImageCodes:
    """The codes of images.

    Args:
        images: sha256 of each.
        phashes: 16 hex digits by sha256; empty or missing: the image has none.
    """
    hashes = [phashes.get(image) or "" for image in images]
    bits = [int(phash, 16) if phash else _own(image) for image, phash in zip(images, hashes, strict=True)]
    return ImageCodes(np.array(bits, np.uint64), np.array([bool(phash) for phash in hashes], np.bool_))


def _own(image: str) -> int:
    return int.from_bytes(hashlib.sha256(image.encode()).digest()[:8], "big")


def close(left: ImageCodes, right: ImageCodes, limit: int) -> NDArray[np.bool_]:
    """Whether the images at the same place differ in at most `limit` bits."""
    distance: NDArray[np.uint8] = np.bitwise_count(left.bits ^ right.bits)
    both, neither = left.hashed & right.hashed, ~(left.hashed | right.hashed)
    near: NDArray[np.bool_] = (both & (distance <= limit)) | (neither & (distance == 0))
    return near


def bands(images: ImageCodes, limit: int) -> list[Keys]:
    """Keys (N,) of which two close images share at least one.

    Of `limit` + 1 bands, `limit` differing bits leave at least one as it is.
    """
    count = limit + 1
    if BITS // count < _LEAST_BAND:
        return [np.zeros(len(images), np.uint64)]
    edges = [round(BITS * number / count) for number in range(count + 1)]
    keys = []
    for start, end in pairwise(edges):
        band = (images.bits >> np.uint64(start)) & np.uint64((1 << (end - start)) - 1)
        keys.append(np.where(images.hashed, band, images.bits))
    return keys


def join(left: Keys, right: Keys) -> Iterator[tuple[Index, Index]]:
    """Places in `left` and `right` that hold the same key, a million pairs at a time."""
    order = np.argsort(right, kind="stable")
    ordered = right[order]
    first = np.searchsorted(ordered, left, "left")
    counts = np.searchsorted(ordered, left, "right") - first
    rows = np.flatnonzero(counts)
    ends = np.cumsum(counts[rows])
    start = 0
    while start < len(rows):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _PAIRS, "right")))
        piece = rows[start:stop]
        many = counts[piece]
        within = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
        yield np.repeat(piece, many), order[np.repeat(first[piece], many) + within]
        start = stop


def within(images: ImageCodes, others: ImageCodes, limit: int) -> NDArray[np.bool_]:
    """For each of N images whether any of `others` is close to it."""
    is_close = np.zeros(len(images), np.bool_)
    for mine, theirs in zip(bands(images, limit), bands(others, limit), strict=True):
        open_ = np.flatnonzero(~is_close)
        for left, right in join(mine[open_], theirs):
            here = open_[left]
            is_close[here[close(images.take(here), others.take(right), limit)]] = True
    return is_close
