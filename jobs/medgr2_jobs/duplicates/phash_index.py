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


class CloseImages:
    """For each of N images which of M held ones are close to it, however many of them look alike.

    Of `limit` + 1 bands of the hash, `limit` differing bits leave at least one as it is: only images that agree in a
    band are compared.
    """

    def __init__(self, asked: ImageCodes, held: ImageCodes, limit: int) -> None:
        self._asked, self._held, self._limit = asked, held, limit
        self._masks = _masks(limit)
        self._bands = [self._band(mask) for mask in self._masks]

    def _band(self, mask: np.uint64) -> tuple[Index, list[int], list[int]]:
        """The held images in the order of a band, and for each asked one where those begin and end that agree in it."""
        mine, theirs = (np.where(codes.hashed, codes.bits & mask, codes.bits) for codes in (self._asked, self._held))
        order = np.argsort(theirs, kind="stable")
        first, last = (np.searchsorted(theirs[order], mine, side).tolist() for side in ("left", "right"))
        return order, first, last

    def of(self, asked: int, among: NDArray[np.bool_] | None = None) -> Iterator[Index]:
        """The held images that are close to an asked one, a few or many at a time, none twice.

        Args:
            asked: which of the N.
            among: (M,) of the held images those that count; None: all.
        """
        ranges = [(first[asked], last[asked]) for _, first, last in self._bands]
        if sum(last - first for first, last in ranges) > len(self._held):  # they all look alike: once through is enough
            places = np.arange(len(self._held)) if among is None else np.flatnonzero(among)
            if (near := self._close(asked, places)[0]).any():
                yield places[near]
            return
        for number, ((order, *_), (start, end)) in enumerate(zip(self._bands, ranges, strict=True)):
            if start == end:
                continue
            places = order[start:end] if among is None else order[start:end][among[order[start:end]]]
            near, differs = self._close(asked, places)
            for mask in self._masks[:number]:
                near &= (differs & mask) != 0  # else an earlier band had it
            if near.any():
                yield places[near]

    def _close(self, asked: int, places: Index) -> tuple[NDArray[np.bool_], Keys]:
        """Which of these held images are close, and in which bits each differs."""
        differs = self._held.bits[places] ^ self._asked.bits[asked]
        hashed = self._held.hashed[places]
        if self._asked.hashed[asked]:
            return hashed & (np.bitwise_count(differs) <= self._limit), differs
        return ~hashed & (differs == 0), differs


def _masks(limit: int) -> list[np.uint64]:
    """The bits of each band; one of none where bands would be too narrow to tell anything apart."""
    count = limit + 1
    if BITS // count < _LEAST_BAND:
        return [np.uint64(0)]
    edges = [round(BITS * number / count) for number in range(count + 1)]
    return [np.uint64(((1 << (end - start)) - 1) << start) for start, end in pairwise(edges)]


def within(images: ImageCodes, others: ImageCodes, limit: int) -> NDArray[np.bool_]:
    """For each of N images whether any of `others` is close to it."""
    close = CloseImages(images, others, limit)
    return np.array([any(True for _ in close.of(place)) for place in range(len(images))], np.bool_)
