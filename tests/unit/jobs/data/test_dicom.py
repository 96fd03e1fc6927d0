"""DICOM: every file becomes an image or is set aside with a reason, and nothing that identifies a person comes too."""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from tests.unit.jobs.data.test_omnimedvqa import place

from medgr2_api.data import DICOM, BurnedInText
from medgr2_jobs.data import dicom
from medgr2_jobs.data.decoder import dicom_file
from medgr2_jobs.data.decoder.protocol import Message
from medgr2_jobs.data.record import BadRecord, Record
from medgr2_jobs.errors import DataError
from medgr2_jobs.store.images import ImageStore

SHIPPED = Path(pydicom.__file__).parent / "data"
NAME, ID = "Doe^Jane", "PAT-4711"


def made(pixels: np.ndarray, **tags: Any) -> Dataset:
    """A data set with these pixels; colour where they have three samples."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.PatientName, dataset.PatientID, dataset.StudyInstanceUID = NAME, ID, "1.2.3.4.5"
    dataset.Modality = "CT"
    colour = pixels.shape[-1] == 3
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    return dataset


def save(root: Path, dataset: Dataset, name: str = "a.dcm") -> None:
    (root / "scans" / name).parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(root / "scans" / name, enforce_file_format=True)


def read(root: Path, *, modality: str = "", **settings: Any) -> list[Record | BadRecord]:
    return list(dicom.read(place(root, "scans", format="DICOM", modality=modality, dicom=DICOM(**settings))))


def grey(root: Path, **settings: Any) -> list[int]:
    """Brightness of the first row of the only image."""
    (record,) = read(root, **settings)
    assert isinstance(record, Record), record
    return np.asarray(ImageStore(root).load(record.image.sha256).convert("L"))[0].tolist()


RAMP = np.arange(0, 400, 100, dtype=np.int16).reshape(1, 4)


def test_without_a_window_the_whole_range_is_shown(tmp_path: Path) -> None:
    save(tmp_path, made(RAMP))
    assert grey(tmp_path) == [0, 85, 170, 255]


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    save(tmp_path, made(RAMP, PhotometricInterpretation="MONOCHROME1"))
    assert grey(tmp_path) == [255, 170, 85, 0]


def test_a_radiograph_that_says_it_twice_is_inverted_once(tmp_path: Path) -> None:
    save(tmp_path, made(RAMP, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE"))
    assert grey(tmp_path) == [255, 170, 85, 0]
    save(tmp_path, made(RAMP, PresentationLUTShape="IDENTITY"))
    assert grey(tmp_path) == [0, 85, 170, 255]


def item(**tags: Any) -> Dataset:
    made = Dataset()
    for keyword, value in tags.items():
        setattr(made, keyword, value)
    return made


def test_an_enhanced_file_has_rescale_and_window_in_its_functional_groups(tmp_path: Path) -> None:
    window = [item(FrameVOILUTSequence=[item(WindowCenter=centre, WindowWidth="401")]) for centre in ("0", "200.5")]
    shared = item(PixelValueTransformationSequence=[item(RescaleSlope="2", RescaleIntercept="-100")])
    tags = {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": window}
    save(tmp_path, made(np.stack([RAMP, RAMP]), NumberOfFrames="2", **tags))
    assert grey(tmp_path) == [0, 64, 191, 255]


def test_a_look_up_table_counts_before_a_window(tmp_path: Path) -> None:
    table = item(LUTDescriptor=[400, 0, 12], LUTData=(np.arange(400, dtype=np.uint16) * 8).tobytes())
    save(tmp_path, made(RAMP.astype(np.uint16), VOILUTSequence=[table], WindowCenter="0", WindowWidth="2"))
    assert grey(tmp_path) == [0, 50, 100, 149]


@pytest.mark.parametrize("kind", ["FloatPixelData", "DoubleFloatPixelData"])
def test_floating_point_pixels(tmp_path: Path, kind: str) -> None:
    dataset = made(RAMP)
    values = RAMP.astype(np.float32 if kind == "FloatPixelData" else np.float64) / 1000
    del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
    dataset.BitsAllocated = 8 * values.dtype.itemsize
    setattr(dataset, kind, values.tobytes())
    save(tmp_path, dataset)
    assert grey(tmp_path) == [0, 85, 170, 255]


def test_the_first_window_counts_in_rescaled_values(tmp_path: Path) -> None:
    tags = {
        "RescaleSlope": "2",
        "RescaleIntercept": "-100",
        "WindowCenter": ["200.5", "0"],
        "WindowWidth": ["201", "9"],
    }
    save(tmp_path, made(RAMP, **tags))
    assert grey(tmp_path) == [0, 0, 255, 255]
    save(tmp_path, made(RAMP, **{**tags, "WindowWidth": ["401", "9"]}))
    assert grey(tmp_path) == [0, 64, 191, 255]


def test_padding_does_not_darken_the_picture(tmp_path: Path) -> None:
    save(tmp_path, made(np.array([[-2000, 100, 200, 300]], np.int16), PixelPaddingValue=-2000))
    assert grey(tmp_path) == [0, 0, 128, 255]


def test_a_palette_gives_colours(tmp_path: Path) -> None:
    tables = {
        f"{colour}PaletteColorLookupTable{part}": value
        for colour, values in (("Red", [0, 65535]), ("Green", [65535, 0]), ("Blue", [0, 0]))
        for part, value in (("Descriptor", [2, 0, 16]), ("Data", np.array(values, np.uint16).tobytes()))
    }
    pixels = np.array([[0, 1]], np.uint8)
    save(tmp_path, made(pixels, PhotometricInterpretation="PALETTE COLOR", **tables))
    (record,) = read(tmp_path)
    assert isinstance(record, Record)
    image = ImageStore(tmp_path).load(record.image.sha256)
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(0, 255, 0), (255, 0, 0)]


@pytest.mark.parametrize("kind", [np.uint16, np.uint32])
def test_colour_of_many_bits(tmp_path: Path, kind: type) -> None:
    top = int(np.iinfo(kind).max)
    save(tmp_path, made(np.array([[[top, 0, top // 2]]], kind)))
    (record,) = read(tmp_path)
    assert isinstance(record, Record)
    assert ImageStore(tmp_path).load(record.image.sha256).getpixel((0, 0)) == (255, 0, 127)


@pytest.mark.parametrize(("most", "taken"), [(1, [5]), (2, [2, 7]), (5, [1, 3, 5, 7, 9]), (99, list(range(10)))])
def test_frames_are_taken_evenly_and_one_from_the_middle(tmp_path: Path, most: int, taken: list[int]) -> None:
    pixels = np.stack([np.full((4, 4), number * 20, np.uint8) for number in range(10)])
    pixels[:, 0, 0], pixels[:, 0, 1] = 0, 255
    save(tmp_path, made(pixels, NumberOfFrames="10"))
    found = read(tmp_path, max_frames=most)
    values = [
        np.asarray(ImageStore(tmp_path).load(r.image.sha256))[3, 3, 0] // 20 for r in found if isinstance(r, Record)
    ]
    assert values == taken
    assert len({r.question_id for r in found if isinstance(r, Record)}) == len(taken)


def test_a_person_is_a_pseudonym_and_the_path_says_nothing(tmp_path: Path) -> None:
    save(tmp_path, made(RAMP), "doe/series1/x.dcm")
    save(tmp_path, made(RAMP + 1), "ward/pat-4711.dcm")
    save(tmp_path, made(RAMP * 2, PatientID="another"), "ward/y.dcm")
    first, second, third = read(tmp_path)
    assert isinstance(first, Record)
    assert isinstance(second, Record)
    assert isinstance(third, Record)
    assert first.patient == second.patient != third.patient
    assert first.image_path.startswith("file-")
    assert second.image_path.startswith("file-")
    assert third.image_path == "ward/y.dcm"
    told = repr([first, second, third]).lower()
    for secret in ("doe", "jane", "4711", "1.2.3.4.5"):
        assert secret not in told


@pytest.mark.parametrize(
    ("tag", "modality", "told"),
    [("MR", "", "MRI"), ("DX", "", "X-Ray"), ("US", "", "Ultrasound"), ("OT", "OCT", "OCT"), ("OT", "", "OT")],
)
def test_modalities_have_our_names(tmp_path: Path, tag: str, modality: str, told: str) -> None:
    save(tmp_path, made(RAMP, Modality=tag))
    (record,) = read(tmp_path, modality=modality)
    assert isinstance(record, Record)
    assert record.modality == told


@pytest.mark.parametrize(
    ("tags", "field", "reason"),
    [
        ({"BurnedInAnnotation": "YES"}, "BurnedInAnnotation", "use a cleaned copy"),
        ({"Rows": 60000, "Columns": 60000}, "Rows", "claims 3,600,000,000 samples"),
        ({"PhotometricInterpretation": "XYB"}, "PhotometricInterpretation", "is not understood"),
        (
            {"PixelData": b"\0"},
            "PixelData",
            "cannot be decoded (transfer syntax Explicit VR Little Endian): ValueError",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, tags: dict[str, Any], field: str, reason: str) -> None:
    dataset = made(RAMP)
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    save(tmp_path, dataset)
    save(tmp_path, made(RAMP), "b.dcm")
    for burned in BurnedInText:
        bad, good = read(tmp_path, burned_in_text=burned)
        assert isinstance(good, Record)
        assert isinstance(bad, BadRecord)
        assert (bad.where, bad.field) == ("a.dcm", field)
        assert reason in bad.reason


@pytest.mark.parametrize("modality", ["SEG", "RTDOSE"])
def test_masks_and_doses_are_no_pictures(tmp_path: Path, modality: str) -> None:
    save(tmp_path, made(RAMP, Modality=modality))
    (bad,) = read(tmp_path)
    assert isinstance(bad, BadRecord)
    assert bad.reason.endswith("and no picture")


def test_colours_that_would_come_out_wrong_are_refused(tmp_path: Path) -> None:
    save(tmp_path, made(np.zeros((2, 2, 3), np.uint8), PhotometricInterpretation="YBR_PARTIAL_422"))
    (bad,) = read(tmp_path)
    assert isinstance(bad, BadRecord)
    assert bad.reason == "'YBR_PARTIAL_422' is not understood"


def test_a_large_file_is_read_frame_by_frame_and_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 999, (5, 64, 64)).astype(np.int16)
    save(tmp_path, made(pixels, NumberOfFrames="5"))
    shutil.copy(SHIPPED / "test_files/image_dfl.dcm", tmp_path / "scans/deflated.dcm")
    shutil.copy(SHIPPED / "test_files/examples_ybr_color.dcm", tmp_path / "scans/jpeg.dcm")
    names = ("a.dcm", "deflated.dcm", "jpeg.dcm")
    whole = [frames(tmp_path / "scans" / name) for name in names]
    monkeypatch.setattr(dicom_file, "_LARGE", 0)
    monkeypatch.setattr(dicom_file, "_LEFT", 1000)
    given = []
    picture = dicom_file.dicom_pixels.picture
    monkeypatch.setattr(
        dicom_file.dicom_pixels,
        "picture",
        lambda dataset, source, frame: given.append(source) or picture(dataset, source, frame),
    )
    assert [frames(tmp_path / "scans" / name) for name in names] == whole
    assert [isinstance(source, str) for source in given] == [True, True, False, True, True]


def frames(path: Path) -> list[bytes]:
    """What the decoder makes of two frames of a file, here and not in its own process."""
    header = {"path": str(path), "name": path.name, "start": 0, "most": 2, "look_for_text": False, "max_pixels": 10**6}
    pictures = [reply.payload for reply in dicom_file.answer(Message(header)) if "item" in reply.header]
    assert all(pictures)
    return pictures


def test_a_damaged_frame_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED / "test_files", tmp_path / "shipped")
    data = bytearray((tmp_path / "shipped/examples_ybr_color.dcm").read_bytes())
    starts = [found.start() for found in re.finditer(b"\xfe\xff\x00\xe0....\xff\xd8", bytes(data), re.DOTALL)]
    assert len(starts) == 30
    data[starts[1] + 8 : starts[1] + 12] = b"Doe!"  # the second frame is no JPEG any more
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans/a.dcm").write_bytes(data)
    found = read(tmp_path, max_frames=30)
    assert [type(record) for record in found] == [Record, BadRecord, *[Record] * 28]
    bad = found[1]
    assert isinstance(bad, BadRecord)
    assert (bad.where, bad.field, "Doe" in bad.reason) == ("a.dcm#1", "PixelData", False)


def test_warnings_are_silent_only_while_a_file_is_read(tmp_path: Path) -> None:
    """A reader is a generator: what it changes while it waits is changed for everybody."""
    save(tmp_path, made(np.stack([RAMP, RAMP]), NumberOfFrames="2"))
    reading = dicom.read(place(tmp_path, "scans", format="DICOM", dicom=DICOM(max_frames=2)))
    before = list(warnings.filters)
    next(reading)
    assert warnings.filters == before


@pytest.mark.parametrize("written", ["nan", "NaN", "NULL", "N/A", "<NA>", " None "])
def test_a_tag_that_stands_for_an_empty_cell_is_nobody(tmp_path: Path, written: str) -> None:
    """Anonymisers that go by a table write so: all such files would be of one patient and one study."""
    save(tmp_path, made(RAMP, PatientID=written, StudyInstanceUID=written))
    (record,) = read(tmp_path)
    assert isinstance(record, Record)
    assert (record.patient, record.dataset) == ("", "")


def test_what_is_no_dicom_is_set_aside_under_a_number(tmp_path: Path) -> None:
    save(tmp_path, made(RAMP), "b.dcm")
    (tmp_path / "scans/Jane Doe.txt").write_text("not DICOM")
    (tmp_path / "scans/DICOMDIR").write_text("left out")
    (tmp_path / "outside.dcm").write_bytes((tmp_path / "scans/b.dcm").read_bytes())
    root = tmp_path / "scans"
    (root / "link.dcm").symlink_to(tmp_path / "outside.dcm")
    (root / "linked").symlink_to(tmp_path)
    (root / "nowhere").symlink_to(tmp_path / "gone")
    found = [str(bad) for bad in dicom.read(place(root, ".")) if isinstance(bad, BadRecord)]
    assert found == [
        "file 1: -: not a DICOM file: it has no DICM marker",
        "file 3: -: a link that leads outside the workspace",
        "file 4: -: a link to a folder, which is not followed; copy the folder",
        "file 5: -: a link that leads nowhere",
    ]
    with pytest.raises(DataError, match="does not exist"):
        list(dicom.read(place(tmp_path, "none")))


#: What names somebody, without regard to what the reader takes for it.
PERSONAL = (
    "PatientName", "PatientID", "OtherPatientIDs", "OtherPatientNames", "PatientBirthDate", "PatientAddress",
    "PatientMotherBirthName", "PatientTelephoneNumbers", "InstitutionName", "InstitutionAddress", "StationName",
    "InstitutionalDepartmentName", "ReferringPhysicianName", "PerformingPhysicianName", "PhysiciansOfRecord",
    "NameOfPhysiciansReadingStudy", "OperatorsName", "RequestingPhysician", "AccessionNumber", "StudyID", "StudyDate",
    "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "DeviceSerialNumber",
)  # fmt: skip


def personal(path: Path) -> set[str]:
    """Values of four characters and more that name somebody; of names also the parts."""
    found: set[str] = set()
    try:
        dataset = pydicom.dcmread(path)
    except Exception:  # what pydicom cannot read has told us nothing either
        return found
    for keyword in PERSONAL:
        try:
            value = dataset.get(keyword)
        except Exception:  # a tag that pydicom cannot make sense of: damaged on purpose
            continue
        for text in value if isinstance(value, MultiValue) else [value]:
            whole = str(text or "").strip()
            found |= {whole, *(re.split(r"[\^= ]", whole) if keyword.endswith(("Name", "Names")) else ())}
    return {text.lower() for text in found if len(text) >= 4 and len(set(text)) > 1}


def chunks(png: bytes) -> set[bytes]:
    """The kinds of chunks in a PNG file."""
    found, place = set(), 8
    while place < len(png):
        found.add(png[place + 4 : place + 8])
        place += 12 + int.from_bytes(png[place : place + 4])
    return found


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_file_that_pydicom_ships_becomes_an_image_or_is_set_aside(tmp_path: Path) -> None:
    """And no value that identifies somebody is in a record, or in the bytes of what was stored."""
    for folder, source in (("a", "test_files"), ("b", "charset_files")):
        shutil.copytree(SHIPPED / source, tmp_path / "scans" / folder)
    files = [path for path in (tmp_path / "scans").rglob("*") if path.is_file() and path.name != "DICOMDIR"]
    secrets = set().union(*map(personal, files))
    assert len(secrets) > 100
    for number, path in enumerate(sorted(files)):  # copies that bear the name of their patient
        told = sorted(personal(path))
        if told and number % 3 == 0:
            copied = (
                tmp_path / "scans" / re.sub(r"[^\w. -]", "_", told[number % len(told)]).strip(".") / f"{number}.dcm"
            )
            copied.parent.mkdir(exist_ok=True)
            shutil.copy(path, copied)
            files.append(copied)
    found = read(tmp_path, max_frames=2, burned_in_text="TrustFlag")
    images = [record for record in found if isinstance(record, Record)]
    assert len(images) >= 100
    assert all(isinstance(record, Record) or (record.reason and record.where) for record in found)
    named = {record.image_path if isinstance(record, Record) else record.where.split("#")[0] for record in found}
    assert len(named) == len(files)

    words = set(re.split(r"[^\w.-]+", repr(found).lower()))
    text = repr(found).lower()
    assert not [value for value in secrets if value in words or (len(value) >= 6 and value in text)]
    for path in (path for path in (tmp_path / "images").rglob("*") if path.is_file()):
        stored = path.read_bytes()
        assert chunks(stored) == {b"IHDR", b"IDAT", b"IEND"}  # no place for anything but pixels
        assert not [value for value in secrets if len(value) >= 6 and value.encode() in stored.lower()]
