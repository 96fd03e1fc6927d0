"""From DICOM's stored values to a picture as a radiologist sees it: rescale, window, palette, inversion. Runs in the
decoder process.

DICOM PS3.3 C.7.6.3 and C.11. A frame is worked on in bands: in floating point it would take four times its memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels.utils import pixel_array

from . import dicom_luts
from .protocol import BadField

_GREY = ("MONOCHROME1", "MONOCHROME2")
_PALETTE = "PALETTE COLOR"
_COLOUR = (
    "RGB",
    "YBR_FULL",
    "YBR_FULL_422",
    "YBR_ICT",
    "YBR_RCT",
)  # YBR_PARTIAL is retired; pydicom leaves it as it is
_BAND = 2**22  # values that are worked on at once
Values = NDArray[Any]


def frame_count(dataset: Dataset) -> int:
    """How many frames a file says that it has."""
    return max(1, int(dataset.get("NumberOfFrames", 1) or 1))


def bytes_per_pixel(samples: int, bits: int) -> float:
    """What a pixel takes while it is decoded: as the decoder gives it, twice, and as a picture."""
    decoded = samples * max(1, bits / 8)
    return 2 * decoded + 4 + (3 if samples > 1 else 1)


def frames(dataset: Dataset, most: int) -> list[int]:
    """Which frames to take: evenly spaced, the middle one if it is only one."""
    count = frame_count(dataset)
    taken = min(count, most)
    return [(2 * place + 1) * count // (2 * taken) for place in range(taken)]


def picture(dataset: Dataset, source: Dataset | str, frame: int) -> Image.Image:
    """One frame as RGB, 8 bits a channel. `source` has the pixels: the data set itself, or its file, of which no other
    frame is read then.

    Raises:
        BadField: a photometric interpretation that nobody knows.
        Exception: what decoders raise on damaged data.
    """
    photometric = str(dataset.get("PhotometricInterpretation", "")).strip()
    if photometric not in (*_GREY, _PALETTE, *_COLOUR):
        raise BadField("PhotometricInterpretation", f"{photometric[:32]!r} is not understood")
    stored = pixel_array(source, index=frame)  # YBR comes back as RGB
    big_endian = not dataset.file_meta.TransferSyntaxUID.is_little_endian
    if photometric == _PALETTE:
        colours = dicom_luts.palette(dataset, big_endian=big_endian)
        return _image(stored, lambda part: _bytes(colours(part), colours.bits), (3,))
    if stored.ndim == 3 and stored.shape[2] in (3, 4):
        return _image(stored, lambda part: _bytes(part[..., :3], int(dataset.BitsStored)), ())
    if stored.ndim != 2:
        raise BadField("SamplesPerPixel", f"does not go with {photometric}")
    brightness = shown(stored, graded(dataset, frame), big_endian=big_endian)
    # PresentationLUTShape repeats what MONOCHROME1 says: a radiograph has both, and is inverted once (PS3.3 C.8.11.1)
    inverted = photometric == "MONOCHROME1" or str(dataset.get("PresentationLUTShape", "")) == "INVERSE"

    def grey(part: Values) -> NDArray[np.uint8]:
        share = brightness(part)
        return np.round((1 - share if inverted else share) * 255).astype(np.uint8)

    return _image(stored, grey, ()).convert("RGB")


def _image(stored: Values, shade: Callable[[Values], NDArray[np.uint8]], channels: tuple[int, ...]) -> Image.Image:
    """The picture that a function makes of stored values, band by band."""
    shape = (*stored.shape[:2], *(channels or (3,) * (stored.ndim == 3)))
    pixels = np.empty(shape, np.uint8)
    for top, part in _bands(stored):
        pixels[top : top + len(part)] = shade(part)
    return Image.fromarray(pixels)


def _bands(stored: Values) -> Iterator[tuple[int, Values]]:
    rows = max(1, _BAND // max(1, stored[0].size))
    for top in range(0, len(stored), rows):
        yield top, stored[top : top + rows]


def graded(dataset: Dataset, frame: int) -> Dataset:
    """What says how a frame is rescaled and windowed; of enhanced files it stands in functional groups (C.7.6.16)."""
    elements = dataset.group_dataset(0x0028)
    elements.file_meta = dataset.file_meta  # tells the byte order of look-up tables
    shared, own = dataset.get("SharedFunctionalGroupsSequence"), dataset.get("PerFrameFunctionalGroupsSequence")
    groups = [*(shared or [])[:1], *(own or [])[frame : frame + 1]]
    for group in groups:
        for keyword in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in (group.get(keyword) or [])[:1]:
                elements.update({element.tag: element for element in item})
    return elements


def shown(stored: Values, dataset: Dataset, *, big_endian: bool) -> Callable[[Values], NDArray[np.float64]]:
    """What gives stored values of a grey frame their brightness in [0, 1]: rescaled, then through the first window or
    look-up table; without either, from the darkest to the brightest value of the frame, padding left out. Tables and
    windows that are empty or make no sense are as good as none."""
    rescaled = _rescaled(dataset, big_endian)
    for item in dataset.get("VOILUTSequence") or ():
        if (table := dicom_luts.table(item, big_endian=big_endian)) is not None:
            return lambda part: _share(np.asarray(table(rescaled(part)), np.float64), 0, 2**table.bits - 1)
    if (window := _window(dataset)) is not None:
        return lambda part: _windowed(rescaled(part), *window)
    padding = dataset.get("PixelPaddingValue")
    inside = (part[part != padding] for _, part in _bands(stored))
    extremes = _extremes(map(rescaled, inside)) or _extremes(rescaled(part) for _, part in _bands(stored))
    low, high = extremes or (0.0, 0.0)
    return lambda part: _share(rescaled(part), low, high)


def _rescaled(dataset: Dataset, big_endian: bool) -> Callable[[Values], NDArray[np.float64]]:
    """The modality's own values: through its first table, or by slope and intercept."""
    for item in dataset.get("ModalityLUTSequence") or ():
        if (table := dicom_luts.table(item, big_endian=big_endian)) is not None:
            return lambda part: np.asarray(table(part), np.float64)
    slope, intercept = _first(dataset.get("RescaleSlope")), _first(dataset.get("RescaleIntercept"))
    if slope is None or intercept is None or slope == 0:
        return lambda part: np.asarray(part, np.float64)
    return lambda part: np.asarray(part, np.float64) * slope + intercept


def _extremes(parts: Iterator[NDArray[np.float64]]) -> tuple[float, float] | None:
    """The smallest and the largest finite value."""
    extremes: tuple[float, float] | None = None
    for part in parts:
        if (finite := part[np.isfinite(part)]).size:
            low, high = float(finite.min()), float(finite.max())
            extremes = (min(low, extremes[0]), max(high, extremes[1])) if extremes else (low, high)
    return extremes


def _window(dataset: Dataset) -> tuple[float, float, str] | None:
    """Centre, width and function of the first window that makes sense."""
    function = str(dataset.get("VOILUTFunction", "LINEAR") or "LINEAR").strip()
    centres, widths = _all(dataset.get("WindowCenter")), _all(dataset.get("WindowWidth"))
    for centre, width in zip(centres, widths, strict=False):
        # a linear window is at least 1 wide, any other wider than 0 (C.11.2.1.2, C.11.2.1.3)
        if centre is not None and width is not None and (width > 0 if function != "LINEAR" else width >= 1):
            return centre, width, function
    return None


def _windowed(values: NDArray[np.float64], centre: float, width: float, function: str) -> NDArray[np.float64]:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -500, 500)))
    if function == "LINEAR_EXACT":
        return _share(values, centre - width / 2, centre + width / 2)
    if width == 1:
        return (values > centre - 0.5).astype(np.float64)
    return _share(values, centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2)


def _share(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    if not high > low:
        return np.zeros_like(values)
    return np.clip((np.nan_to_num(values, nan=low) - low) / (high - low), 0, 1)


def _all(value: Any) -> list[float | None]:
    """The values of an element; None for each that is no finite number."""
    return [_number(item) for item in (value if isinstance(value, MultiValue | list) else [value])]


def _first(value: Any) -> float | None:
    return next(iter(_all(value)), None)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _bytes(values: Values, bits: int) -> NDArray[np.uint8]:
    """Colour values of `bits` bits as 8."""
    scaled: NDArray[np.uint64] = values.astype(np.uint64) * 255 // (2**bits - 1)
    return scaled.clip(0, 255).astype(np.uint8)
