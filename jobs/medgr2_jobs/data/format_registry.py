"""Which module reads which format. A new format is a new module and a line here."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from medgr2_api.data import DataFormat

from .record import BadRecord, Place, Record

#: Each has `read(place) -> Iterator[Record | BadRecord]`; imported when needed. Phantoms are drawn to files first.
READERS = {
    DataFormat.OMNIMEDVQA: "omnimedvqa",
    DataFormat.PHANTOM: "omnimedvqa",
    DataFormat.MMMU: "mmmu",
    DataFormat.VQA_JSONL: "vqajsonl",
    DataFormat.DICOM: "dicom",
    DataFormat.IMAGE_FOLDER: "imagefolder",
}


def read(data_format: DataFormat, place: Place) -> Iterator[Record | BadRecord]:
    """The records of a source or benchmark, one at a time, bad ones among them.

    Raises:
        DataError: nothing there, or a file that is not of the format.
    """
    found: Iterator[Record | BadRecord] = importlib.import_module(f".{READERS[data_format]}", __package__).read(place)
    return found
