"""DICOM files as images: pixels only. No identifying tag reaches a table, a file name or a message.

A folder is walked in the order of its names; DICOMDIR is left out. There are no questions: the source is for the
generator. Of a large file only the tags are read, and then the frames that are taken.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pydicom
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medgr2_api.data import DICOM, BurnedInText, DataSource

from ..errors import DataError, StageError
from ..store.images import MAX_SOURCE_PIXELS, UNREADABLE
from . import burned_in_text, dicom_pixels, file_walk, phi_in_paths
from .record import BadField, BadRecord, Place, Record, pseudonym

#: DICOM's modality → ours, which are OmniMedVQA's.
MODALITIES = {
    "CT": "CT", "PT": "PET", "MR": "MRI", "US": "Ultrasound", "IVUS": "Ultrasound", "CR": "X-Ray", "DX": "X-Ray",
    "RF": "X-Ray", "XA": "X-Ray", "MG": "X-Ray", "IO": "X-Ray", "PX": "X-Ray", "RG": "X-Ray", "OPT": "OCT",
    "IVOCT": "OCT", "OCT": "OCT", "OP": "Fundus Photography", "DMS": "Dermoscopy", "SM": "Microscopy",
    "GM": "Microscopy", "NM": "Nuclear Medicine",
}  # fmt: skip
#: What has pixels, but is no picture of anybody.
_NO_PICTURES = {"SEG": "a segmentation", "RTDOSE": "a dose distribution"}
_CODE = re.compile(r"[A-Z0-9_]{1,16}")  # what may stand in the tag Modality; anything else is not repeated
_LARGE = 64 * 2**20  # bytes of a file that is not read as a whole
_LEFT = 2**20  # bytes of a value that is left in a large file
_WRITTEN = (
    "looks as if it had text in its pixels, which may name the patient; use a cleaned copy, or set "
    "dicom.burnedInText: TrustFlag when you know better"
)


@dataclass(frozen=True)
class _Opened:
    """A file whose tags are known."""

    path: Path
    dataset: Dataset
    large: bool
    """Whether its pixels are still in the file."""
    name: str
    """What tables and messages call it."""
    frames: list[int]
    """Those to take."""

    def picture(self, frame: int) -> Image.Image:
        """One frame.

        Raises:
            BadField: it cannot be decoded.
        """
        source = self.path if self.large else self.dataset
        try:
            return dicom_pixels.picture(self.dataset, source, frame)
        except BadField:
            raise
        except Exception as error:  # decoders are many, and so are their errors
            syntax = getattr(getattr(self.dataset, "file_meta", None), "TransferSyntaxUID", None)
            written = syntax.name if syntax is not None and syntax.is_transfer_syntax else "none that is known"
            raise _damaged(error, "PixelData", f"it cannot be decoded (transfer syntax {written})") from None


def read(place: Place) -> Iterator[Record | BadRecord]:
    """The images of a file or folder, frame by frame.

    Raises:
        DataError: nothing there.
    """
    if not place.path.exists():
        raise DataError(f"{place.what}: {place.path} does not exist; copy the data onto the volume or correct the path")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its messages quote values of tags
    for number, (path, problem) in enumerate(file_walk.files(place.path)):
        if problem:
            yield BadRecord(f"file {number}", "-", problem)
        elif path.name.upper() != "DICOMDIR":
            yield from _file(place, path, number)


def _options(place: Place) -> DICOM:
    """How to read the files. A benchmark needs answers, so it is never DICOM."""
    return (place.source.dicom if isinstance(place.source, DataSource) else None) or DICOM()


def _file(place: Place, path: Path, number: int) -> Iterator[Record | BadRecord]:
    """The frames of one file, or why it has none. Until its tags are known its name might hold one of them."""
    name = f"file {number}"
    try:
        with _quiet():
            dataset, large = _open(place, path)
            name = _name(place, path, dataset)
            _check(dataset)
            taken = dicom_pixels.frames(dataset, _options(place).max_frames)
            opened = _Opened(path, dataset, large, name, taken)
            several = len(opened.frames) > 1
            if several:  # text is often missed on a frame or two: one where it is found stands for all
                _look_for_text(place, opened)
    except BadField as bad:
        yield BadRecord(name, bad.field, bad.reason)
        return
    except StageError:
        raise
    except Exception as error:  # a tag is understood when it is asked for, and may turn out to be nonsense then
        damaged = _damaged(error, "-", "a tag makes no sense")
        yield BadRecord(name, damaged.field, damaged.reason)
        return
    for frame in opened.frames:
        try:
            with _quiet():
                record = _record(place, opened, frame)
        except BadField as bad:
            yield BadRecord(f"{name}#{frame}" if several else name, bad.field, bad.reason)
        else:
            yield record


def _open(place: Place, path: Path) -> tuple[Dataset, bool]:
    """The tags of a file, and whether it is a large one."""
    if not path.resolve().is_relative_to(place.root.resolve()):
        raise BadField("-", "a link that leads outside the workspace")
    try:
        deflated = read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
        large = path.stat().st_size > _LARGE and not deflated  # that has no places to come back to
        return pydicom.dcmread(path, defer_size=_LEFT if large else None), large
    except InvalidDicomError:
        raise BadField("-", "not a DICOM file: it has no DICM marker") from None
    except Exception as error:  # a damaged file makes the parser fail in any of many ways
        raise _damaged(error, "-", "it cannot be read") from None


def _check(dataset: Dataset) -> None:
    """Refuses, before anything is decoded, what is no picture or must not be used."""
    if not any(keyword in dataset for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise BadField("PixelData", "is missing: the file holds no picture")
    if kind := _NO_PICTURES.get(str(dataset.get("Modality", "")).strip().upper()):
        raise BadField("Modality", f"says that this is {kind}, and no picture")
    if str(dataset.get("BurnedInAnnotation", "")).strip().upper() == "YES":
        raise BadField("BurnedInAnnotation", "is YES: text in the pixels may name the patient; use a cleaned copy")
    try:
        size = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("SamplesPerPixel", 1))
    except (AttributeError, TypeError, ValueError):
        raise BadField("Rows", "or Columns is missing, or no number") from None
    if not 0 < size <= MAX_SOURCE_PIXELS:
        raise BadField("Rows", f"claims {size:,} samples a frame; at most {MAX_SOURCE_PIXELS:,} are opened")


def _look_for_text(place: Place, opened: _Opened) -> None:
    """Sets a file of several frames aside if one of them seems to have text; a damaged one is told of later."""
    if _options(place).burned_in_text is not BurnedInText.QUARANTINE:
        return
    for frame in opened.frames:
        try:
            image = opened.picture(frame)
        except BadField:
            continue
        if burned_in_text.has_text(image):
            raise BadField("PixelData", _WRITTEN)


def _record(place: Place, opened: _Opened, frame: int) -> Record:
    image = opened.picture(frame)
    alone = len(opened.frames) == 1
    if alone and _options(place).burned_in_text is BurnedInText.QUARANTINE and burned_in_text.has_text(image):
        raise BadField("PixelData", _WRITTEN)
    patient, study, declared = (
        str(opened.dataset.get(keyword, "") or "").strip() for keyword in ("PatientID", "StudyInstanceUID", "Modality")
    )
    code = declared.upper() if _CODE.fullmatch(declared.upper()) else ""
    return Record(
        question_id=f"{opened.name}#{frame}",
        image=place.store.add(image, place.max_pixels),
        image_path=opened.name,
        dataset=pseudonym(place.salt, study),
        modality=MODALITIES.get(code) or place.modality or code or "Other",
        patient=pseudonym(place.salt, patient),
    )


def _name(place: Place, path: Path, dataset: Dataset) -> str:
    """The file's path below the source's folder; a pseudonym where that holds what a tag holds, or might."""
    relative = path.relative_to(place.path).as_posix() if path != place.path else path.name
    try:
        tells = phi_in_paths.holds(relative, phi_in_paths.identifying(dataset))
    except Exception:  # the tag that makes no sense may be the one that is in the path
        tells = True
    return f"file-{pseudonym(place.salt, relative)}" if tells else relative


def _damaged(error: Exception, field: str, what: str) -> BadField:
    """The file's fault, without the error's text, which may quote a tag. What is the disk's fault is raised again."""
    if isinstance(error, OSError) and error.errno is not None and error.errno not in UNREADABLE:
        raise error
    return BadField(field, f"{what}: {type(error).__name__}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings: they quote values of tags."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
