"""The perceptual hash is imagehash's, bit for bit: hashes that are written down stay comparable."""

from __future__ import annotations

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageFilter

from medgr2_jobs.data import synthetic_images
from medgr2_jobs.duplicates.phash_index import BITS, phash


def pictures(seed: int) -> list[Image.Image]:
    """Of many kinds and sizes; flat ones and steps have frequencies that are exactly equal."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 400, 2)
    noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    ramp = np.linspace(0, 255, width, dtype=np.uint8)
    return [
        noise,
        noise.filter(ImageFilter.GaussianBlur(9)),
        noise.convert("P"),
        noise.convert("RGBA"),
        Image.fromarray(np.tile(ramp, (height, 1))),
        Image.fromarray(np.full((height, width), rng.integers(0, 256), np.uint8)),
        Image.fromarray(np.where(np.arange(width) < width // 2, 0, 255).astype(np.uint8)[None].repeat(height, 0)),
        synthetic_images.draw(synthetic_images.attributes(seed, 1), seed, 1),
    ]


@pytest.mark.parametrize("seed", range(60))
def test_the_same_bits(seed: int) -> None:
    for picture in pictures(seed):
        assert phash(picture) == str(imagehash.phash(picture))
        assert len(phash(picture)) == BITS // 4
