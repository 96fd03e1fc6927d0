"""DICOM files as images: pixels only. No identifying tag reaches a table, a file name or a message.

A folder is walked in the order of its names; DICOMDIR is left out. There are no questions: the source is for the
generator. Of a large file only the tags are read, and then the frames that are taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from medgr2_api.data import DICOM, BurnedInText, DataSource

from ..errors import DataError
from ..store.rows.prepared import SetAside
from . import file_walk
from .decoder import client as decoder
from .decoder.protocol import Header
from .record import BadField, BadRecord, Place, Record, optional_text

#: DICOM's modality → ours, which are OmniMedVQA's.
MODALITIES = {
    "CT": "CT", "PT": "PET", "MR": "MRI", "US": "Ultrasound", "IVUS": "Ultrasound", "CR": "X-Ray", "DX": "X-Ray",
    "RF": "X-Ray", "XA": "X-Ray", "MG": "X-Ray", "IO": "X-Ray", "PX": "X-Ray", "RG": "X-Ray", "OPT": "OCT",
    "IVOCT": "OCT", "OCT": "OCT", "OP": "Fundus Photography", "DMS": "Dermoscopy", "SM": "Microscopy",
    "GM": "Microscopy", "NM": "Nuclear Medicine",
}  # fmt: skip
_CODE = re.compile(r"[A-Z0-9_]{1,16}")  # what may stand in the tag Modality; anything else is not repeated


def read(place: Place) -> Iterator[Record | BadRecord]:
    """The images of a file or folder, frame by frame.

    Raises:
        DataError: nothing there.
    """
    if not place.path.exists():
        raise DataError(f"{place.what}: {place.path} does not exist; copy the data onto the volume or correct the path")
    for number, (path, problem) in enumerate(file_walk.files(place.path)):
        if problem:
            yield BadRecord(_unread(place, path, number), "-", problem)
        elif path.name.upper() != "DICOMDIR":
            yield from _file(place, path, number)


def _options(place: Place) -> DICOM:
    """How to read the files. A benchmark needs answers, so it is never DICOM."""
    return (place.source.dicom if isinstance(place.source, DataSource) else None) or DICOM()


def _file(place: Place, path: Path, number: int) -> Iterator[Record | BadRecord]:
    """The frames of one file, or why it has none."""
    name, shown, part = "", _unread(place, path, number), ""
    if wrong := file_walk.wrong_with(path, place.root.resolve()):
        yield BadRecord(shown, "-", wrong)
        return
    opened: Header = {}
    frames: list[int] | None = None
    searched = 0
    for reply in decoder.numbered(_request(place, path)):
        header, bad = reply.header, reply.bad
        if "opened" in header:
            opened = header["opened"]
            name = _name(place, path, opened["tells"])
            shown = place.names.file(name)
            part = opened["instance"] or _same_file(path)
            place.named_images.add(part)  # also of frames that are not taken, or withheld
        elif "frames" in header:
            frames, searched = header["frames"], header["searched"]
        elif frames is None:
            assert bad is not None
            yield BadRecord(shown, bad.field, bad.reason, bad.kind)
            if "item" in header:  # it died of the tags, and would again
                return
        elif header["item"] < searched:
            if bad is not None and bad.kind is SetAside.WITHHELD:
                yield BadRecord(shown, bad.field, bad.reason, bad.kind)
        else:
            frame = frames[header["item"] - searched]
            where = f"{shown}#{frame}" if len(frames) > 1 else shown
            try:
                yield _record(place, reply, opened, name, frame, where, part)
            except BadField as bad:
                field = "PixelData" if bad.field == "-" else bad.field
                yield BadRecord(where, field, bad.reason, bad.kind)


def _request(place: Place, path: Path) -> Header:
    options = _options(place)
    return {
        "request": "dicom",
        "path": str(path),
        "name": _relative(place, path),
        "most": options.max_frames,
        "look_for_text": options.burned_in_text is BurnedInText.QUARANTINE,
        "max_pixels": place.max_pixels,
    }


def _same_file(path: Path) -> str:
    """What stands for a file that has no name of its own in its tags."""
    state = path.stat()
    return f"file {state.st_dev} {state.st_ino}"


def _record(
    place: Place, reply: decoder.Decoded, opened: Header, name: str, frame: int, where: str, part: str
) -> Record:
    declared = opened["Modality"].upper()
    code = declared if _CODE.fullmatch(declared) else ""
    return Record(
        question_id=f"{name}#{frame}",
        image=place.keep(replace(reply.picture(), parts=(part,))),
        image_path=name,
        dataset=place.names.identity(optional_text(opened, "StudyInstanceUID")),
        modality=MODALITIES.get(code) or place.modality or code or "Other",
        patient=place.names.identity(optional_text(opened, "PatientID")),
        where=where,
    )


def _unread(place: Place, path: Path, number: int) -> str:
    """What messages call a file whose tags are not known: a clear name might hold one of them."""
    return f"file {number}" if place.names.clear else place.names.file(_relative(place, path))


def _relative(place: Place, path: Path) -> str:
    """The file's path below the source's folder."""
    return path.relative_to(place.path).as_posix() if path != place.path else path.name


def _name(place: Place, path: Path, tells: bool) -> str:
    """The file's path; where names are clear, one that holds what a tag holds, or might, is hidden all the same."""
    relative = _relative(place, path)
    return place.names.hidden(relative) if tells and place.names.clear else relative
