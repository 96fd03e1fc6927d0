"""The perceptual hash of an image: near-duplicates differ in few bits (DECISIONS 8)."""

from __future__ import annotations

from PIL import Image


def phash(image: Image.Image) -> str:
    """64 bits of the lowest frequencies of an image's brightness, as 16 hex digits."""
    import imagehash  # brings scipy along

    return str(imagehash.phash(image))
