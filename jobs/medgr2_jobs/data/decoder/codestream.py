"""What a compressed frame of a DICOM file says about its own size, before a decoder believes it."""

from __future__ import annotations

import struct
from typing import NamedTuple

from pydicom.uid import (
    UID,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLETransferSyntaxes,
)

from .protocol import BadField

_HTJ2K = ("1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203")
_JPEG = frozenset((*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes))
_JPEG_2000 = frozenset((*JPEG2000TransferSyntaxes, *_HTJ2K))
_START_2000 = b"\xff\x4f\xff\x51"  # SOC, SIZ
_ALONE = frozenset((0x01, *range(0xD0, 0xD8)))  # markers without a length: TEM, RSTn
_FRAME = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}  # SOFn, also that of JPEG-LS
_RLE_SEGMENTS = 15


class Claim(NamedTuple):
    """What the header of a codestream says."""

    width: int
    height: int
    components: int


def check(frame: bytes, syntax: UID, *, rows: int, columns: int, samples: int) -> None:
    """Refuses a codestream that is of another size than its file says: it would be decoded at its own.

    Raises:
        BadField: it is, or has no header.
    """
    if syntax in RLETransferSyntaxes:
        segments = int.from_bytes(frame[:4], "little")
        if not 0 < segments <= _RLE_SEGMENTS:
            raise BadField("PixelData", f"claims {segments} RLE segments; there can be {_RLE_SEGMENTS}")
        return
    claim = _claim_2000(frame) if syntax in _JPEG_2000 else _claim_jpeg(frame) if syntax in _JPEG else None
    if claim is not None and claim != (columns, rows, samples):
        raise BadField(
            "PixelData",
            f"its codestream claims {claim.width} x {claim.height} pixels of {claim.components} samples, the file "
            f"{columns} x {rows} of {samples}",
        )


def _claim_2000(frame: bytes) -> Claim:
    """ISO/IEC 15444-1, A.5.1. Some files wrap the codestream in the boxes of a JP2 file."""
    start = frame.find(_START_2000)
    try:
        x1, y1, x0, y0 = struct.unpack_from(">4I", frame, start + 8)
        (components,) = struct.unpack_from(">H", frame, start + 40)
    except struct.error:
        start = -1
    if start < 0:
        raise BadField("PixelData", "its codestream has no header of JPEG 2000")
    return Claim(x1 - x0, y1 - y0, components)


def _claim_jpeg(frame: bytes) -> Claim:
    """ISO/IEC 10918-1, B.2.2: the first frame header."""
    place = frame.find(b"\xff\xd8") + 2
    while place >= 2 and place + 10 <= len(frame):
        if frame[place] != 0xFF:
            place += 1  # some writers leave bytes between the segments, and decoders pass over them
            continue
        marker = frame[place + 1]
        if marker in _FRAME:
            height, width, components = struct.unpack_from(">HHB", frame, place + 5)
            return Claim(width, height, components)
        if marker == 0xFF:
            place += 1
        elif marker in _ALONE:
            place += 2
        else:
            place += 2 + int.from_bytes(frame[place + 2 : place + 4], "big")
    raise BadField("PixelData", "its codestream has no header of JPEG")
