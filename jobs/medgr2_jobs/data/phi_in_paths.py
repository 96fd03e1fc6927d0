"""Whether a path tells who the patient is: what the identifying tags of a file hold must not stand in its name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

#: What names a person, a visit or a place, as keywords of the standard. All persons' names, dates and UIDs are added.
IDENTIFYING = frozenset(
    {
        "PatientID", "OtherPatientIDs", "IssuerOfPatientID", "PatientAddress", "PatientTelephoneNumbers",
        "PatientInsurancePlanCodeSequence", "MilitaryRank", "PatientComments", "MedicalRecordLocator",
        "AccessionNumber", "StudyID", "AdmissionID", "ServiceEpisodeID", "RequestedProcedureID",
        "ScheduledProcedureStepID", "PerformedProcedureStepID", "FillerOrderNumberImagingServiceRequest",
        "PlacerOrderNumberImagingServiceRequest", "InstitutionName", "InstitutionAddress",
        "InstitutionalDepartmentName", "StationName", "CurrentPatientLocation", "DeviceSerialNumber",
        "ReferringPhysicianAddress", "ReferringPhysicianTelephoneNumbers", "PersonName",
    }
)  # fmt: skip
_KINDS = frozenset({"PN", "DA", "DT"})  # value representations: names, dates
_STANDARD = "1.2.840.10008."  # UIDs that mean the same everywhere
_PIXELS = 0x7FE0
_PER_FRAME = 0x52009230  # a sequence item per frame; the same tags stand in the shared one
_SHORT = 3  # characters; shorter values are looked for as whole words


def identifying(dataset: Dataset) -> set[str]:
    """Values of identifying tags, also of those in sequences; names and addresses also in their parts.

    Raises:
        Exception: what pydicom raises on tags that make no sense.
    """
    values: set[str] = set()
    for element in _elements(dataset):
        own = element.VR == "UI" and not str(element.value).startswith(_STANDARD)
        if not (own or element.VR in _KINDS or element.keyword in IDENTIFYING) or element.VR == "SQ":
            continue
        value = element.value
        for item in value if isinstance(value, MultiValue | list) else [value]:
            text = str(item or "")
            values |= {text, *re.split(r"[\s^=,;/\\]+", text)}
    return {text.strip() for text in values if text.strip()}


def holds(path: str, values: Iterable[str]) -> bool:
    """Whether one of the values stands in the path, whatever its case, accents and punctuation."""
    plain = _plain(path)
    whole, words = _squeezed(plain), set(re.split(r"[\W_]+", plain))
    for value in values:
        sought = _squeezed(_plain(value))
        long = len(sought) >= _SHORT or not sought.isascii()  # a Chinese name may be one character
        if sought and (sought in words or (long and sought in whole)):
            return True
    return False


def _elements(dataset: Dataset) -> Iterator[DataElement]:
    """All elements but pixels, per-frame sequences, and what is so large that it was left on the disk."""
    for tag in sorted(dataset.keys()):
        raw: DataElement | RawDataElement = dataset.get_item(tag, keep_deferred=True)
        left = isinstance(raw, RawDataElement) and raw.value is None and raw.length > 0
        if tag.group == _PIXELS or tag == _PER_FRAME or left:
            continue
        element = dataset[tag]
        yield element
        if element.VR == "SQ":
            for item in element.value:
                yield from _elements(item)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKD", text).casefold()


def _squeezed(text: str) -> str:
    return "".join(letter for letter in text if letter.isalnum())
