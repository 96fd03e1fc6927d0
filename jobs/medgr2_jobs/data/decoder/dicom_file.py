"""A DICOM file, frame by frame. Runs in the decoder process: the tags are a stranger's as much as the pixels are.

Of a large file only the tags are read, and then the frames that are taken. No text of a tag crosses, nor of an error,
which may quote one: only the patient's and the study's ids, for their pseudonyms, and the modality.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import pydicom
from PIL import Image
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset, read_file_meta_info, read_preamble
from pydicom.uid import DeflatedExplicitVRLittleEndian

from ...store.rows.prepared import SetAside
from .. import burned_in_text, phi_in_paths
from . import codestream, dicom_pixels, limits, pictures
from .protocol import BadField, Header, Message, unusable

#: What has pixels, but is no picture of anybody: modalities, and kinds of objects.
_NO_PICTURES = {"SEG": "a segmentation", "RTDOSE": "a dose distribution"}
_NO_PICTURE_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.481.2": "a dose distribution",
}
_PIXEL_DATA = 0x7FE00010
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_LARGE = 64 * limits.MiB  # bytes of a file that is not read as a whole
_LEFT = limits.MiB  # bytes of a value that is left in a large file
_INFLATED = 256 * limits.MiB  # bytes of a deflated file, which has no places to come back to
_WRITTEN = (
    "looks as if it had text in its pixels, which may name the patient; use a cleaned copy, or set "
    "dicom.burnedInText: TrustFlag when you know better"
)


@dataclass(frozen=True)
class Opened:
    """A file whose tags are known."""

    path: str
    dataset: Dataset
    large: bool
    """Whether its pixels are still in the file."""

    def picture(self, frame: int) -> Image.Image:
        """One frame.

        Raises:
            BadField: it cannot be decoded.
            OSError: the disk fails.
        """
        syntax = getattr(getattr(self.dataset, "file_meta", None), "TransferSyntaxUID", None)
        try:
            self._check_codestream(frame)
            return dicom_pixels.picture(self.dataset, self.path if self.large else self.dataset, frame)
        except BaseException as error:  # decoders are many, and so are their errors
            written = syntax.name if syntax is not None and syntax.is_transfer_syntax else "none that is known"
            cannot = f"it cannot be decoded (transfer syntax {written})"
            raise limits.blamed(error, "PixelData", cannot) from None

    def _check_codestream(self, frame: int) -> None:
        syntax = self.dataset.file_meta.TransferSyntaxUID
        if not syntax.is_encapsulated:
            return
        element: DataElement | RawDataElement = self.dataset.get_item(_PIXEL_DATA, keep_deferred=True)
        count = dicom_pixels.frame_count(self.dataset)
        offsets = None
        if "ExtendedOffsetTable" in self.dataset and "ExtendedOffsetTableLengths" in self.dataset:
            offsets = (self.dataset.ExtendedOffsetTable, self.dataset.ExtendedOffsetTableLengths)
        stream: BinaryIO
        if isinstance(element, RawDataElement) and element.value is None:  # it was left in the file
            with open(self.path, "rb") as stream:
                stream.seek(element.value_tell)
                data = get_frame(stream, frame, extended_offsets=offsets, number_of_frames=count)
        else:
            data = get_frame(self.dataset.PixelData, frame, extended_offsets=offsets, number_of_frames=count)
        codestream.check(
            data,
            syntax,
            rows=int(self.dataset.Rows),
            columns=int(self.dataset.Columns),
            samples=int(self.dataset.SamplesPerPixel),
        )


def answer(request: Message) -> Iterator[Message]:
    """First what the file says about itself and which frames are taken, then these, from item `start` on.

    Text is often missed on a frame or two: one where it is found stands for all. So of a file of several frames all are
    first looked at, an item each, and then they come, an item each.
    """
    header = request.header
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its messages quote values of tags
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # and so do its warnings
        opened = _open(header["path"])
        with _tags():
            about = _about(opened.dataset, header["name"])
        if header["start"] == 0:
            yield Message({"opened": about})
        with _tags():
            refuse(opened.dataset)
            taken = dicom_pixels.frames(opened.dataset, header["most"])
        searched = taken if header["look_for_text"] and len(taken) > 1 else []
        if header["start"] == 0:
            yield Message({"frames": taken, "searched": len(searched)})
        work = [(frame, True, None) for frame in searched]
        work += [(frame, header["look_for_text"] and not searched, header["max_pixels"]) for frame in taken]
        for item, (frame, look_for_text, max_pixels) in list(enumerate(work))[header["start"] :]:
            reply = _frame(opened, frame, look_for_text, max_pixels)
            yield Message({"item": item, **reply.header}, reply.payload)
            if item < len(searched) and reply.header.get("unusable", {}).get("kind") == SetAside.WITHHELD:
                return


@contextmanager
def _tags() -> Iterator[None]:
    """A tag is understood when it is asked for, and may turn out to be nonsense then."""
    try:
        yield
    except BaseException as error:
        raise limits.blamed(error, "-", "a tag makes no sense") from None


def _about(dataset: Dataset, name: str) -> Header:
    """Who it is of, and whether the file's name tells that."""
    ids = {}
    for keyword in ("PatientID", "StudyInstanceUID", "Modality"):
        ids[keyword] = str(dataset.get(keyword, "") or "").strip()
    try:
        tells = phi_in_paths.holds(name, phi_in_paths.identifying(dataset))
    except Exception:  # the tag that makes no sense may be the one that is in the path
        tells = True
    return {**ids, "tells": tells, "instance": _instance(dataset)}


def _instance(dataset: Dataset) -> str:
    """Names the file by its SOP Instance UID, which each copy of it has, as all its frames' part (`StoredImage`)."""
    uid = str(dataset.get("SOPInstanceUID", "") or "").strip()
    return f"dicom {hashlib.sha256(uid.encode('utf-8', 'surrogateescape')).hexdigest()}" if uid else ""


def _frame(opened: Opened, frame: int, look_for_text: bool, max_pixels: int | None) -> Message:
    """A frame, looked at; as a picture of at most `max_pixels` unless that is None."""
    limits.begin()
    try:
        image = opened.picture(frame)
        limits.begin()
        if look_for_text and burned_in_text.has_text(image):
            raise BadField("PixelData", _WRITTEN, SetAside.WITHHELD)
        return Message({}) if max_pixels is None else pictures.finished(image, max_pixels)
    except BaseException as error:
        return Message({"unusable": unusable(limits.blamed(error, "PixelData"))})


def _open(path: str) -> Opened:
    """The tags of a file.

    Raises:
        BadField: it is not DICOM, too large, or damaged.
        OSError: the disk fails.
    """
    try:
        deflated = read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
        if os.path.getsize(path) > _LARGE and not deflated:
            return Opened(path, pydicom.dcmread(path, defer_size=_LEFT), True)
        data = limits.read_file(path)
        if deflated:
            _check_inflated(data)
        return Opened(path, pydicom.dcmread(io.BytesIO(data)), False)
    except InvalidDicomError:
        raise BadField("-", "not a DICOM file: it has no DICM marker") from None
    except BaseException as error:  # a damaged file makes the parser fail in any of many ways
        raise limits.blamed(error, "-", "it cannot be read") from None


def _check_inflated(data: bytes) -> None:
    """Inflates what stands behind the group 2 of a file and throws it away, until it is too much."""
    stream = io.BytesIO(data)
    read_preamble(stream, False)
    read_dataset(stream, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
    inflate, total, rest = zlib.decompressobj(-zlib.MAX_WBITS), 0, data[stream.tell() :]
    while rest and not inflate.eof:
        total += len(inflate.decompress(rest, limits.MiB))
        rest = inflate.unconsumed_tail
        if total > _INFLATED:
            raise BadField("-", f"inflates to more than {_INFLATED // limits.MiB} MiB; it was given up")


def refuse(dataset: Dataset) -> None:
    """Refuses, before anything is decoded, what is no picture, must not be used, or is too large.

    Raises:
        BadField: it is one of these.
    """
    if not any(keyword in dataset for keyword in _PIXELS):
        raise BadField("PixelData", "is missing: the file holds no picture", SetAside.NO_PICTURE)
    kind = _NO_PICTURES.get(str(dataset.get("Modality", "")).strip().upper())
    if kind := kind or _NO_PICTURE_CLASSES.get(str(dataset.get("SOPClassUID", ""))):
        raise BadField("Modality", f"says that this is {kind}, and no picture", SetAside.NO_PICTURE)
    if str(dataset.get("BurnedInAnnotation", "")).strip().upper() == "YES":
        text = "is YES: text in the pixels may name the patient; use a cleaned copy"
        raise BadField("BurnedInAnnotation", text, SetAside.WITHHELD)
    try:
        rows, columns = int(dataset.Rows), int(dataset.Columns)
        samples = int(dataset.get("SamplesPerPixel", 1))
        bits = int(dataset.BitsAllocated)
    except (AttributeError, TypeError, ValueError):
        raise BadField("Rows", "or Columns, or BitsAllocated, is missing, or no number") from None
    size = rows * columns * samples
    if not 0 < size <= limits.MAX_PIXELS:
        raise BadField("Rows", f"claims {size:,} samples a frame; at most {limits.MAX_PIXELS:,} are opened")
    try:
        limits.check(columns, rows, dicom_pixels.bytes_per_pixel(samples, bits))
    except BadField as bad:
        raise BadField("Rows", bad.reason) from None
