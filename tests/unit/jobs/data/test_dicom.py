"""DICOM: every file becomes an image or is set aside with a reason, and nothing that identifies a person comes too."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from tests.unit.jobs.data.test_omnimedvqa import place

from medgr2_api.data import DICOM, BurnedInText
from medgr2_jobs.data import dicom
from medgr2_jobs.data.records import BadRecord, Record
from medgr2_jobs.errors import DataError
from medgr2_jobs.store.images import ImageStore

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
    where = place(root, "scans", modality=modality)
    where.dicom = DICOM(**settings)
    return list(dicom.read(where))


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


def test_colour_of_sixteen_bits(tmp_path: Path) -> None:
    save(tmp_path, made(np.array([[[65535, 0, 32768]]], np.uint16)))
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


def test_what_is_no_dicom_is_set_aside_under_a_number(tmp_path: Path) -> None:
    save(tmp_path, made(RAMP), "b.dcm")
    (tmp_path / "scans/Jane Doe.txt").write_text("not DICOM")
    (tmp_path / "scans/DICOMDIR").write_text("left out")
    (tmp_path / "outside.dcm").write_bytes((tmp_path / "scans/b.dcm").read_bytes())
    root = tmp_path / "scans"
    (root / "link.dcm").symlink_to(tmp_path / "outside.dcm")
    found = [str(bad) for bad in dicom.read(place(root, ".")) if isinstance(bad, BadRecord)]
    assert found == [
        "file 1: -: not a DICOM file: it has no DICM marker",
        "file 3: -: a link that leads outside the workspace",
    ]
    with pytest.raises(DataError, match="does not exist"):
        list(dicom.read(place(tmp_path, "none")))


def test_text_in_the_pixels_is_set_aside_unless_only_the_flag_counts(tmp_path: Path) -> None:
    pixels = np.full((256, 256), 30, np.uint8)
    image = Image.fromarray(pixels)
    ImageDraw.Draw(image).text((6, 6), "DOE^JANE 1961-04-23", fill=230, font=ImageFont.load_default(size=18))
    save(tmp_path, made(np.asarray(image)))
    (bad,) = read(tmp_path)
    assert isinstance(bad, BadRecord)
    assert "looks as if it had text in its pixels" in bad.reason
    (record,) = read(tmp_path, burned_in_text="TrustFlag")
    assert isinstance(record, Record)


def test_every_file_that_pydicom_ships_becomes_an_image_or_is_set_aside(tmp_path: Path) -> None:
    """And no value that identifies somebody is in a record, or in the bytes of what was stored."""
    shipped = Path(pydicom.__file__).parent / "data"
    for folder in ("test_files", "charset_files"):
        shutil.copytree(shipped / folder, tmp_path / "scans" / folder)
    found = read(tmp_path, max_frames=2, burned_in_text="TrustFlag")
    images = [record for record in found if isinstance(record, Record)]
    assert len(images) >= 100
    for bad in found:
        assert isinstance(bad, Record) or (bad.reason and bad.where)
    files = [path for path in (tmp_path / "scans").rglob("*") if path.is_file() and path.name != "DICOMDIR"]
    assert len({record.where for record in found if isinstance(record, BadRecord)}) + len(
        {record.image_path for record in images}
    ) == len(files)

    secrets: set[str] = set()
    for path in files:
        try:
            values = dicom.identifying(pydicom.dcmread(path))
        except Exception:  # what pydicom cannot read has told us nothing either
            continue
        secrets |= {value for value in values if len(value) >= 5 and len(set(value)) > 1}
    assert len(secrets) > 100
    told = repr(found).lower()
    stored = b"".join(path.read_bytes() for path in (tmp_path / "images").rglob("*") if path.is_file()).lower()
    leaked = [value for value in secrets if value in told or value.encode() in stored]
    assert not leaked
