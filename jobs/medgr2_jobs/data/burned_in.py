"""Whether a picture seems to have text in its pixels, which may name a patient.

A heuristic, on the safe side: overlays are written in one brightness, in lines of small separate marks of equal
height. It looks for such lines. It misses text of few letters, in cursive, or in the shades of its surroundings, and
takes rulers and rows of electrodes for text. docs/dicom.md says how often.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: Letters of a line, at least.
LETTERS = 5
#: Heights of letters in pixels of an image whose shorter side is 512.
_HEIGHTS = (5.0, 40.0)
_SIDE = 512.0
#: Share of the picture's range by which a mark is brighter than what is around it.
_CONTRAST = 0.35
#: Brightness from which on a mark may be writing: letters run together where the level is far below theirs.
_LEVELS = (200, 150, 110)
#: Grey levels in which the writing of one overlay may differ.
_SAME = 12


def has_text(image: Image.Image) -> bool:
    """Whether a line of letters is found in it, bright on dark or dark on bright."""
    grey = np.asarray(image.convert("L"), np.int16)
    return any(_has_lines(side, level) for side in (grey, 255 - grey) for level in _LEVELS)


def _has_lines(grey: NDArray[np.int16], level: int) -> bool:
    from scipy import ndimage  # not before it is needed

    scale = max(0.5, min(grey.shape) / _SIDE)
    low, high = _HEIGHTS[0] * scale, _HEIGHTS[1] * scale
    low = max(5.0, low)
    size = int(2 * high) | 1
    around = ndimage.uniform_filter(grey, size)
    bright = (grey >= level) & (grey - around > _CONTRAST * 255)
    marks, count = ndimage.label(bright, structure=np.ones((3, 3), int))
    if not count:
        return False
    letters = []
    for index, place in enumerate(ndimage.find_objects(marks), 1):
        rows, columns = place
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if not (low <= height <= high and 1 <= width <= 1.6 * height):
            continue
        inside = marks[place] == index
        values = grey[place][inside]
        filled = inside.mean()
        # writing is of one brightness, and neither a filled spot nor a hair
        if np.percentile(values, 90) - np.percentile(values, 25) <= _SAME and (filled < 0.8 or width <= height / 3):
            letters.append((rows.stop, columns.start, columns.stop, height))
    return _longest_line(letters) >= LETTERS


def _longest_line(letters: list[tuple[int, int, int, int]]) -> int:
    """Letters of the longest line: on one baseline, of about one height, a letter's width or two apart."""
    best = 0
    for bottom, _, _, height in letters:
        line = sorted(
            letter for letter in letters if abs(letter[0] - bottom) <= 0.2 * height and 0.6 <= letter[3] / height <= 1.4
        )
        line.sort(key=lambda letter: letter[1])
        run = 1
        for left, right in pairwise(line):
            run = run + 1 if 0 <= right[1] - left[2] <= 2.5 * height else 1
            best = max(best, run)
    return best
