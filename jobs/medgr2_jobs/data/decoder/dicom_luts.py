"""Look-up tables of DICOM files (PS3.3 C.7.6.3.1.5, C.11.1.1, C.11.2.1.1), read whatever the byte order.

pydicom's own functions read palettes of big-endian files as little-endian, wrap around where a table of 8 bits is
longer than 256 entries, and give up where a table is empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import ExplicitVRLittleEndian

Values = NDArray[Any]
_COLOURS = ("Red", "Green", "Blue")
_ENTRIES = 2**16  # what a descriptor means by 0


@dataclass(frozen=True)
class Table:
    """A table of N entries, of one or several channels."""

    first: int
    """The stored value that the first entry stands for; smaller ones are shown as it, larger ones as the last."""
    entries: Values
    """(N,) or (N, C), unsigned."""
    bits: int
    """Of an entry: the largest is 2**bits - 1."""

    def __call__(self, values: Values) -> Values:
        """What the values stand for; of the same shape, with the channels behind it."""
        index = np.clip(values.astype(np.int64) - self.first, 0, len(self.entries) - 1)
        return self.entries[index]


def table(item: Dataset, *, big_endian: bool) -> Table | None:
    """The table of an item of a Modality or VOI LUT Sequence; None: it is empty, or makes no sense."""
    try:
        count, first, bits = (int(value) for value in item.LUTDescriptor)
        entries = _entries(item["LUTData"], count or _ENTRIES, big_endian)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return None
    return Table(first, entries, bits) if len(entries) and 0 < bits <= 16 else None


def palette(dataset: Dataset, *, big_endian: bool) -> Table:
    """The colours of a palette.

    Raises:
        Exception: there is none, or it makes no sense.
    """
    count, first, bits = (int(value) for value in dataset.RedPaletteColorLookupTableDescriptor)
    channels = [_channel(dataset, colour, count or _ENTRIES, big_endian) for colour in _COLOURS]
    if len({len(channel) for channel in channels}) != 1 or not len(channels[0]):
        raise ValueError("the tables of a palette have different lengths, or none")
    entries = np.stack(channels, axis=-1)
    if entries.dtype == np.uint8:
        bits = 8
    elif bits != 16 and entries.max() >= 2**bits:  # 8 bits, but in the upper half of 16
        bits = 16
    return Table(first, entries, bits)


def _channel(dataset: Dataset, colour: str, count: int, big_endian: bool) -> Values:
    name = f"{colour}PaletteColorLookupTableData"
    if name in dataset:
        return _entries(dataset[name], count, big_endian)
    return _expanded(dataset, f"Segmented{name}", count, big_endian)


def _entries(element: DataElement, count: int, big_endian: bool) -> Values:
    """At most `count` entries: a word each, or two in a word, the lower byte first."""
    if not isinstance(element.value, bytes):
        values = element.value if element.VM > 1 else [element.value]
        return np.array([int(value) & 0xFFFF for value in values][:count], np.uint16)
    words = _words(element, big_endian)
    return words[:count] if len(words) != (count + 1) // 2 else words.view(np.uint8)[:count]


def _expanded(dataset: Dataset, name: str, count: int, big_endian: bool) -> Values:
    """A table that is written as segments: pydicom's, of which we take the colours of all values."""
    copy = Dataset()
    copy.file_meta = FileMetaDataset()
    copy.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = _words(dataset[name], big_endian).tobytes()
    _, _, bits = dataset.RedPaletteColorLookupTableDescriptor
    copy.RedPaletteColorLookupTableDescriptor = [count % _ENTRIES, 0, bits]
    for each in _COLOURS:
        setattr(copy, f"Segmented{each}PaletteColorLookupTableData", data)
    return apply_color_lut(np.arange(count), copy)[:, 0]


def _words(element: DataElement, big_endian: bool) -> Values:
    """Words of 16 bits; a byte behind the last whole one is dropped. OB has no byte order."""
    data = element.value[: len(element.value) // 2 * 2]
    return np.frombuffer(data, ">u2" if big_endian and element.VR != "OB" else "<u2").astype("<u2")
