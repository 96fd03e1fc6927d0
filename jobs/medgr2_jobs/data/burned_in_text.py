"""Whether a picture seems to have text in its pixels, which may name a patient.

A heuristic, on the safe side: overlays are written in one brightness, in lines of small separate marks of equal
height. It looks for such lines. It misses text of few letters, in cursive, or in the shades of its surroundings, and
takes rulers and rows of electrodes for text. docs/dicom.md says how often.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: Letters of a line, at least.
LETTERS = 5
_LOWEST = 5  # pixels of a letter's height; smaller ones cannot be read, nor told from noise
_HIGHEST = 40.0  # pixels of a letter's height in a picture whose shorter side is 512
_SIDE = 512.0
#: Share of the picture's range by which a mark is brighter than what is around it.
_CONTRAST = 0.35
#: Brightness from which on a mark may be writing: letters run together where the level is far below theirs.
_LEVELS = (200, 150, 110)
#: Grey levels in which the writing of one overlay may differ.
_SAME = 30

Letter = tuple[int, int, int, int]  # bottom, left, right, height


def has_text(image: Image.Image) -> bool:
    """Whether a line of letters is found in it, bright on dark or dark on bright."""
    from scipy import ndimage  # not before it is needed

    grey = np.asarray(image.convert("L"), np.int16)
    highest = _HIGHEST * max(0.5, min(grey.shape) / _SIDE)
    around = ndimage.uniform_filter(grey, int(2 * highest) | 1)
    return any(
        _has_line(_letters(side, (side >= level) & (above > _CONTRAST * 255), highest))
        for side, above in _sides(grey, around)
        for level in _LEVELS
    )


def _sides(grey: NDArray[np.int16], around: NDArray[np.int16]) -> Iterator[tuple[NDArray[np.int16], NDArray[np.int16]]]:
    """Bright on dark, then dark on bright: the brightness, and how far it is above what is around it. One at a time,
    as pictures can be large."""
    yield grey, grey - around
    yield 255 - grey, around - grey


def _letters(grey: NDArray[np.int16], bright: NDArray[np.bool_], highest: float) -> list[Letter]:
    """The marks that may be letters: in size, of one brightness, and neither a filled spot nor a hair."""
    from scipy import ndimage

    marks, _ = ndimage.label(bright, structure=np.ones((3, 3), int))
    letters = []
    for index, place in enumerate(ndimage.find_objects(marks), 1):
        rows, columns = place
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if not (_LOWEST <= height <= highest and width <= 1.6 * height):
            continue
        inside = marks[place] == index
        if inside.mean() >= 0.8 and width > height / 3:
            continue
        values = np.sort(grey[place][inside])
        if values[9 * values.size // 10] - values[values.size // 4] <= _SAME:
            letters.append((rows.stop, columns.start, columns.stop, height))
    return letters


def _has_line(letters: list[Letter]) -> bool:
    """Whether enough letters stand on one baseline, of about one height, a letter's width or two apart."""
    letters = sorted(letters)
    bottoms = [letter[0] for letter in letters]
    for bottom, _, _, height in letters:
        near = letters[bisect_left(bottoms, bottom - 0.2 * height) : bisect_right(bottoms, bottom + 0.2 * height)]
        line = sorted((letter for letter in near if 0.6 <= letter[3] / height <= 1.4), key=lambda letter: letter[1:])
        run = 1
        for left, right in pairwise(line):
            run = run + 1 if 0 <= right[1] - left[2] <= 2.5 * height else 1
            if run >= LETTERS:
                return True
    return False
