"""From DICOM's stored values to a picture as a radiologist sees it: rescale, window, palette, inversion.

DICOM PS3.3 C.7.6.3 and C.11.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi
from pydicom.pixels.utils import pixel_array

from .record import BadField

_GREY = ("MONOCHROME1", "MONOCHROME2")
_PALETTE = "PALETTE COLOR"
_COLOUR = (
    "RGB",
    "YBR_FULL",
    "YBR_FULL_422",
    "YBR_ICT",
    "YBR_RCT",
)  # YBR_PARTIAL is retired; pydicom leaves it as it is
Values = NDArray[Any]


def frames(dataset: Dataset, most: int) -> list[int]:
    """Which frames to take: evenly spaced, the middle one if it is only one."""
    count = max(1, int(dataset.get("NumberOfFrames", 1) or 1))
    taken = min(count, most)
    return [(2 * place + 1) * count // (2 * taken) for place in range(taken)]


def picture(dataset: Dataset, source: Dataset | Path, frame: int) -> Image.Image:
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
    if photometric == _PALETTE:
        coloured = apply_color_lut(stored, dataset)
        return Image.fromarray(_bytes(coloured, 8 * coloured.dtype.itemsize), "RGB")
    if stored.ndim == 3 and stored.shape[2] in (3, 4):
        return Image.fromarray(_bytes(stored[..., :3], int(dataset.BitsStored)), "RGB")
    if stored.ndim != 2:
        raise BadField("SamplesPerPixel", f"does not go with {photometric}")
    grey = shown(stored, graded(dataset, frame))
    # PresentationLUTShape repeats what MONOCHROME1 says: a radiograph has both, and is inverted once (PS3.3 C.8.11.1)
    inverted = photometric == "MONOCHROME1" or str(dataset.get("PresentationLUTShape", "")) == "INVERSE"
    grey = 1 - grey if inverted else grey
    return Image.fromarray(np.round(grey * 255).astype(np.uint8), "L").convert("RGB")


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


def shown(stored: Values, dataset: Dataset) -> NDArray[np.float64]:
    """Brightness in [0, 1] of a grey image: rescaled, then through its first window or look-up table; without either,
    from its darkest to its brightest value, padding left out."""
    values = apply_modality_lut(stored, dataset)
    if "VOILUTSequence" in dataset and len(dataset.VOILUTSequence):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return _share(np.asarray(apply_voi(values, dataset, index=0), np.float64), 0, 2**bits - 1)
    values = np.asarray(values, np.float64)
    centre, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    if centre is not None and width is not None and width >= 1:
        return _windowed(values, centre, width, str(dataset.get("VOILUTFunction", "LINEAR") or "LINEAR"))
    inside = values[stored != padding] if (padding := dataset.get("PixelPaddingValue")) is not None else values
    inside = inside if inside.size else values
    return _share(values, float(inside.min()), float(inside.max()))


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


def _first(value: Any) -> float | None:
    item = value[0] if isinstance(value, MultiValue | list) and len(value) else value
    try:
        return float(item)
    except (TypeError, ValueError):
        return None


def _bytes(values: Values, bits: int) -> NDArray[np.uint8]:
    """Colour values of `bits` bits as 8."""
    scaled: NDArray[np.uint64] = values.astype(np.uint64) * 255 // (2**bits - 1)
    return scaled.clip(0, 255).astype(np.uint8)
