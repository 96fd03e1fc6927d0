"""Phantoms: 56 x 56 pictures drawn by code in the looks of eight modalities, with known truth and four questions each.

No patient, no licence, about a millisecond each. A picture carries marks of one finding, in one quadrant, one to four
of them. What a tiny vision model can learn decides the layout: a quadrant is one image token (28 x 28), a mark's cell
one patch (14 x 14), and each quadrant has a coloured frame edge as registration mark, for position alone is not
learnable without absolute position embeddings.

`write` leaves them in OmniMedVQA's own file format, so that the loader of real data is the only loader.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = 56
_QUADRANT = 28
_CELL = 14
_NOISE = 10.0  # standard deviation of the pixel noise, in grey levels

#: The kinds of question, and the values of the attribute behind each.
VALUES: dict[str, tuple[str, ...]] = {
    "modality": ("CT", "MRI", "XRay", "Ultrasound", "Dermoscopy", "Fundus", "OCT", "Microscopy"),
    "finding": ("nodule", "cyst", "plaque", "fissure", "mass", "deposit"),
    "location": ("upper left", "upper right", "lower left", "lower right"),
    "count": ("one", "two", "three", "four"),
}
KINDS: tuple[str, ...] = tuple(VALUES)

QUESTIONS: dict[str, tuple[str, str]] = {
    "modality": ("Which modality is this?", "What kind of image is this?"),
    "finding": ("Which finding is shown?", "What do the marks look like?"),
    "location": ("Where are the marks?", "Which part shows the marks?"),
    "count": ("How many marks are there?", "What is the number of marks?"),
}
#: Rationale of an answer, and the same in other words.
RATIONALES: dict[str, tuple[str, str]] = {
    "modality": ("The picture looks like {}.", "The scan appears like {}."),
    "finding": ("The marks look like {}.", "The signs appear like {}."),
    "location": ("The marks lie in the {}.", "The signs sit in the {}."),
    "count": ("There are {} marks here.", "There seem {} signs here."),
}

_FRAME = ((250, 40, 40), (40, 230, 40), (60, 60, 250), (240, 230, 40))
_BRIGHT = np.array([250.0, 250.0, 235.0], np.float32)
_DARK = np.array([12.0, 10.0, 18.0], np.float32)
_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
_CENTRE = (SIZE - 1) / 2

Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class Attributes:
    """What a phantom shows: the truth behind its questions."""

    modality: str
    finding: str
    location: str
    count: str

    def value(self, kind: str) -> str:
        """The attribute that questions of this kind ask for."""
        value: str = getattr(self, kind)
        return value


@dataclass(frozen=True)
class PhantomQuestion:
    """A question whose answer cannot be had without the image."""

    kind: str
    text: str
    options: tuple[str, ...]
    answer_index: int
    rationale: str


def attributes(seed: int, index: int) -> Attributes:
    """What phantom `index` of series `seed` shows; every value equally likely, independently."""
    rng = random.Random(f"phantom/{seed}/{index}")
    return Attributes(**{kind: rng.choice(values) for kind, values in VALUES.items()})


def question(phantom: Attributes, kind: str, rng: random.Random) -> PhantomQuestion:
    """Asks for one attribute: gold and three other values (true for other images), shuffled."""
    gold = phantom.value(kind)
    options = [*rng.sample([value for value in VALUES[kind] if value != gold], 3), gold]
    rng.shuffle(options)
    return PhantomQuestion(
        kind, rng.choice(QUESTIONS[kind]), tuple(options), options.index(gold), rationale(kind, gold)
    )


def questions(seed: int, index: int, count: int) -> list[PhantomQuestion]:
    """`count` questions of different kinds about phantom `index`, in the order of `KINDS`."""
    rng = random.Random(f"questions/{seed}/{index}")
    phantom = attributes(seed, index)
    kinds = set(rng.sample(KINDS, count))
    return [question(phantom, kind, rng) for kind in KINDS if kind in kinds]


def rationale(kind: str, value: str, *, paraphrased: bool = False) -> str:
    """One sentence that gives `value` as what the image shows; `paraphrased`: the same with synonyms."""
    return RATIONALES[kind][paraphrased].format(value)


def paraphrase(text: str) -> str | None:
    """The synonym variant of a phantom's rationale; None when `text` is none."""
    for plain, other in RATIONALES.values():
        before, after = plain.split("{}")
        if text.startswith(before) and text.endswith(after) and len(text) > len(before) + len(after):
            return other.format(text[len(before) : len(text) - len(after)])
    return None


def draw(phantom: Attributes, seed: int, index: int) -> Image.Image:
    """The RGB picture, 56 x 56; the same for the same (seed, index) and attributes."""
    rng = np.random.default_rng([seed, index])
    canvas = _BACKGROUNDS[phantom.modality](rng)
    quadrant = VALUES["location"].index(phantom.location)
    left, top = _QUADRANT * (quadrant % 2), _QUADRANT * (quadrant // 2)
    cells = rng.permutation(4)[: VALUES["count"].index(phantom.count) + 1]
    for cell in cells:
        dx, dy = rng.uniform(-1.5, 1.5, 2)
        centre_x = left + _CELL * (cell % 2 + 0.5) - 0.5 + dx
        centre_y = top + _CELL * (cell // 2 + 0.5) - 0.5 + dy
        _mark(canvas, phantom.finding, centre_x, centre_y, 4.6 + rng.uniform(-0.5, 0.5))
    _frame(canvas)
    canvas += _NOISE * rng.standard_normal(canvas.shape, dtype=np.float32)
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def write(
    folder: Path,
    *,
    dataset: str,
    seed: int,
    images: int,
    questions_per_image: int,
    tick: Callable[[int], None] = lambda done: None,
) -> dict[str, Attributes]:
    """Writes a data set in OmniMedVQA's format: `folder/questions.json` and `folder/images/000000.png`, …

    An image without questions still gets one record, for records are how the format names images.

    Args:
        folder: made if it is not there.
        dataset: the records' `dataset`.
        seed: series of the phantoms.
        images: how many.
        questions_per_image: 0 to 4.
        tick: called with the number of images drawn so far.

    Returns:
        What each image shows, by its `image_path`.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    truth: dict[str, Attributes] = {}
    records: list[dict[str, str]] = []
    for index in range(images):
        tick(index)
        phantom = attributes(seed, index)
        path = f"images/{index:06d}.png"
        draw(phantom, seed, index).save(folder / path, compress_level=1)
        truth[path] = phantom
        for drawn_question in questions(seed, index, max(1, questions_per_image)):
            record = {
                "dataset": dataset,
                "question_id": f"{index:06d}-{drawn_question.kind}",
                "question_type": drawn_question.kind,
                "question": drawn_question.text,
                "gt_answer": drawn_question.options[drawn_question.answer_index],
                "image_path": path,
                "modality_type": phantom.modality,
                "rationale": drawn_question.rationale,
            }
            record |= {
                f"option_{letter}": option for letter, option in zip("ABCD", drawn_question.options, strict=True)
            }
            records.append(record)
    (folder / "questions.json").write_text(json.dumps(records, indent=0), encoding="utf-8")
    return truth


def _blank(*colour: float) -> Pixels:
    canvas = np.empty((SIZE, SIZE, 3), np.float32)
    canvas[...] = colour
    return canvas


def _grey(levels: NDArray[Any]) -> Pixels:
    canvas = np.empty((SIZE, SIZE, 3), np.float32)
    canvas[...] = levels[..., None]
    return canvas


def _ellipse(jitter: NDArray[np.float64]) -> NDArray[Any]:
    """Squared elliptic radius, 1 on the outline of the body."""
    squared: NDArray[Any] = ((_X - _CENTRE - jitter[2]) / (24 + jitter[0])) ** 2
    squared += ((_Y - _CENTRE - jitter[3]) / (22 + jitter[1])) ** 2
    return squared


def _ct(rng: np.random.Generator) -> Pixels:
    radius = _ellipse(rng.uniform(-2, 2, 4))
    canvas = _blank(15, 15, 15)
    canvas[radius < 1] = 105
    canvas[(radius < 1) & (radius > 0.8)] = 215
    return canvas


def _mri(rng: np.random.Generator) -> Pixels:
    radius = _ellipse(rng.uniform(-2, 2, 4))
    waves = 95 + 35 * np.sin(0.55 * np.hypot(_X - _CENTRE, _Y - _CENTRE) + rng.uniform(0, 6))
    canvas = _blank(8, 8, 8)
    canvas[radius < 1] = waves[radius < 1][:, None]
    return canvas


def _xray(rng: np.random.Generator) -> Pixels:
    ribs = 28 * np.sin(2 * np.pi * _Y / 9 + rng.uniform(0, 6))
    return _grey(150 - 35 * np.abs(_X - _CENTRE) / _CENTRE + ribs)


def _ultrasound(rng: np.random.Generator) -> Pixels:
    fan = np.abs(_X - _CENTRE) < (_Y + 14) * 0.75
    speckle = np.clip(60 + 55 * rng.standard_normal((SIZE, SIZE)), 0, 255)
    return _grey(speckle * fan)


def _dermoscopy(rng: np.random.Generator) -> Pixels:
    return _blank(*(np.array([205, 150, 125]) + rng.uniform(-12, 12, 3)))


def _fundus(rng: np.random.Generator) -> Pixels:
    disc = (26 + rng.uniform(-2, 2)) ** 2 > (_X - _CENTRE) ** 2 + (_Y - _CENTRE) ** 2
    canvas = _blank(0, 0, 0)
    canvas[disc] = np.array([190, 80, 30]) + rng.uniform(-12, 12, 3)
    return canvas


def _oct(rng: np.random.Generator) -> Pixels:
    upper, lower, phase = rng.uniform(-2, 2, 3)
    wave = 3 * np.sin(_X / 9 + phase)
    layers = 95 * np.exp(-(((_Y - 20 - upper + wave) / 4) ** 2)) + 80 * np.exp(-(((_Y - 36 - lower + wave) / 5) ** 2))
    canvas = _grey(25 + layers)
    canvas *= np.array([0.8, 1.0, 0.85], np.float32)
    return canvas


def _microscopy(rng: np.random.Generator) -> Pixels:
    canvas = _blank(*(np.array([200, 165, 205]) + rng.uniform(-10, 10, 3)))
    cells = rng.uniform(0, SIZE, (26, 2)).astype(np.float32)
    rows, columns = np.mgrid[-2:3, -2:3]
    for x, y in cells:
        near_x, near_y = int(x) + columns, int(y) + rows
        inside = ((near_x - x) ** 2 + (near_y - y) ** 2 < 3.5) & (near_x >= 0) & (near_y >= 0)
        inside &= (near_x < SIZE) & (near_y < SIZE)
        canvas[near_y[inside], near_x[inside]] = (120, 70, 150)
    return canvas


_BACKGROUNDS: dict[str, Callable[[np.random.Generator], Pixels]] = dict(
    zip(
        VALUES["modality"],
        (_ct, _mri, _xray, _ultrasound, _dermoscopy, _fundus, _oct, _microscopy),
        strict=True,
    )
)


def _mark(canvas: Pixels, finding: str, x: float, y: float, size: float) -> None:
    """Draws one bright mark on a dark disc around (x, y)."""
    top, left = max(0, int(y) - 8), max(0, int(x) - 8)
    window = (slice(top, top + 18), slice(left, left + 18))
    dx, dy = _X[window] - x, _Y[window] - y
    radius = np.hypot(dx, dy)
    across, along = np.abs(dx), np.abs(dy)
    shape: NDArray[np.bool_]
    match finding:
        case "nodule":
            shape = radius < size
        case "cyst":
            shape = (radius < size) & (radius > size - 2)
        case "plaque":
            shape = (along < 1.6) & (across < size + 0.5)
        case "fissure":
            shape = (across < 1.6) & (along < size + 0.5)
        case "mass":
            diagonal = np.minimum(np.abs(dx - dy), np.abs(dx + dy))
            shape = (diagonal < 1.7) & (np.maximum(across, along) < size)
        case _:
            shape = (np.abs(across - 2.7) < 1.2) & (np.abs(along - 2.7) < 1.2)
    part = canvas[window]
    part[radius < size + 1.6] = _DARK
    part[shape] = _BRIGHT


def _frame(canvas: Pixels) -> None:
    """Colours the outer edge of each quadrant: its registration mark."""
    for quadrant, colour in enumerate(_FRAME):
        left, top = _QUADRANT * (quadrant % 2), _QUADRANT * (quadrant // 2)
        edge_x = 0 if left == 0 else SIZE - 3
        edge_y = 0 if top == 0 else SIZE - 3
        canvas[top : top + _QUADRANT, edge_x : edge_x + 3] = colour
        canvas[edge_y : edge_y + 3, left : left + _QUADRANT] = colour
