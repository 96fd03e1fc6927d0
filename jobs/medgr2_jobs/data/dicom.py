"""DICOM files as images: pixels only. No identifying tag reaches a table, a file name or a message.

A folder is walked in the order of its names; DICOMDIR is left out. There are no questions: the source is for the
generator.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue

from medgr2_api.data import BurnedInText

from ..errors import DataError, StageError
from ..store.images import MAX_SOURCE_PIXELS, UNREADABLE
from . import burned_in, dicom_pixels
from .records import Bad, BadRecord, Place, Record, pseudonym

#: What names a person, a visit or a place, as keywords of the standard; all UIDs of the file are added.
IDENTIFYING = (
    "PatientName", "PatientID", "OtherPatientIDs", "OtherPatientNames", "PatientBirthDate", "PatientBirthName",
    "PatientMotherBirthName", "PatientAddress", "PatientTelephoneNumbers", "MilitaryRank", "PatientComments",
    "AccessionNumber", "StudyID", "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName", "StationName",
    "ReferringPhysicianName", "PhysiciansOfRecord", "PerformingPhysicianName", "NameOfPhysiciansReadingStudy",
    "OperatorsName", "RequestingPhysician", "ResponsiblePerson", "IssuerOfPatientID", "DeviceSerialNumber",
    "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID",
)  # fmt: skip
_SHORTEST = 3  # characters of a value that is looked for in a path
#: DICOM's modality → ours, which are OmniMedVQA's.
MODALITIES = {
    "CT": "CT", "PT": "PET", "MR": "MRI", "US": "Ultrasound", "IVUS": "Ultrasound", "CR": "X-Ray", "DX": "X-Ray",
    "RF": "X-Ray", "XA": "X-Ray", "MG": "X-Ray", "IO": "X-Ray", "PX": "X-Ray", "RG": "X-Ray", "OPT": "OCT",
    "IVOCT": "OCT", "OCT": "OCT", "OP": "Fundus Photography", "DMS": "Dermoscopy", "SM": "Microscopy",
    "GM": "Microscopy", "NM": "Nuclear Medicine",
}  # fmt: skip


def read(place: Place) -> Iterator[Record | BadRecord]:
    """The images of a file or folder, frame by frame.

    Raises:
        DataError: nothing there.
    """
    if not place.path.exists():
        raise DataError(f"{place.what}: {place.path} does not exist; copy the data onto the volume or correct the path")
    base = place.path if place.path.is_dir() else place.path.parent
    files = sorted(path for path in base.rglob("*") if path.is_file()) if place.path.is_dir() else [place.path]
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its messages quote values of tags
    for number, path in enumerate(files):
        if path.name.upper() != "DICOMDIR":
            yield from _file(place, base, path, number)


def _file(place: Place, base: Path, path: Path, number: int) -> Iterator[Record | BadRecord]:
    """The frames of one file, or why it has none. Until its tags are known its name might hold one of them."""
    name = f"file {number}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote values of tags, too
            dataset = _open(place, path)
            name = _name(place, base, path, dataset)
            _check(dataset)
            for frame in dicom_pixels.frames(dataset, place.dicom.max_frames):
                yield _frame(place, dataset, name, frame)
    except Bad as bad:
        yield BadRecord(name, bad.field, bad.reason)
    except StageError:
        raise
    except Exception as error:  # a tag is understood when it is asked for, and may turn out to be nonsense then
        bad = _damaged(error, "-", "a tag makes no sense")
        yield BadRecord(name, bad.field, bad.reason)


def _open(place: Place, path: Path) -> Dataset:
    if not path.resolve().is_relative_to(place.root.resolve()):
        raise Bad("-", "a link that leads outside the workspace")
    try:
        return pydicom.dcmread(path)
    except InvalidDicomError:
        raise Bad("-", "not a DICOM file: it has no DICM marker") from None
    except Exception as error:  # a damaged file makes the parser fail in any of many ways
        raise _damaged(error, "-", "it cannot be read") from None


def _check(dataset: Dataset) -> None:
    """Refuses, before anything is decoded, what is no picture or must not be used."""
    if not any(keyword in dataset for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise Bad("PixelData", "is missing: the file holds no picture")
    if str(dataset.get("BurnedInAnnotation", "")).strip().upper() == "YES":
        raise Bad("BurnedInAnnotation", "is YES: text in the pixels may name the patient; use a cleaned copy")
    try:
        size = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("SamplesPerPixel", 1))
    except (AttributeError, TypeError, ValueError):
        raise Bad("Rows", "or Columns is missing, or no number") from None
    if not 0 < size <= MAX_SOURCE_PIXELS:
        raise Bad("Rows", f"claims {size:,} samples a frame; at most {MAX_SOURCE_PIXELS:,} are opened")


def _frame(place: Place, dataset: Dataset, name: str, frame: int) -> Record:
    try:
        image = dicom_pixels.picture(dataset, frame)
    except Bad:
        raise
    except Exception as error:  # decoders are many, and so are their errors
        syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
        written = getattr(syntax, "name", "none given")
        raise _damaged(error, "PixelData", f"it cannot be decoded (transfer syntax {written})") from None
    if place.dicom.burned_in_text is BurnedInText.QUARANTINE and burned_in.has_text(image):
        raise Bad(
            "PixelData",
            "looks as if it had text in its pixels, which may name the patient; use a cleaned copy, or set "
            "dicom.burnedInText: TrustFlag when you know better",
        )
    patient = str(dataset.get("PatientID", "") or "").strip()
    study = str(dataset.get("StudyInstanceUID", "") or "").strip()
    told = str(dataset.get("Modality", "") or "").strip().upper()
    return Record(
        question_id=f"{name}#{frame}",
        image=place.store.add(image, place.max_pixels),
        image_path=name,
        dataset=pseudonym(place.salt, study),
        modality=MODALITIES.get(told) or place.modality or told or "Other",
        patient=pseudonym(place.salt, patient),
    )


def _name(place: Place, base: Path, path: Path, dataset: Dataset) -> str:
    """The file's path below the source's folder; a pseudonym where that holds what a tag holds."""
    relative = path.relative_to(base).as_posix()
    lower = relative.lower()
    if any(value in lower for value in identifying(dataset)):
        return f"file-{pseudonym(place.salt, relative)}"
    return relative


def identifying(dataset: Dataset) -> set[str]:
    """Values of identifying tags, lower case, names in their parts; those too short to mean anything are left out."""
    found: set[str] = set()
    for keyword in IDENTIFYING:
        value = dataset.get(keyword)
        for item in value if isinstance(value, MultiValue | list) else [value]:
            text = str(item or "").replace("^", " ").replace("=", " ").lower()
            found |= {text.strip(), *text.split()}
    return {text for text in found if len(text) >= _SHORTEST}


def _damaged(error: Exception, field: str, what: str) -> Bad:
    """The file's fault, without the error's text, which may quote a tag. What is the disk's fault is raised again."""
    if isinstance(error, OSError) and error.errno is not None and error.errno not in UNREADABLE:
        raise error
    return Bad(field, f"{what}: {type(error).__name__}")
