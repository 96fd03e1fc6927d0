"""DICOM files that are damaged, hostile, or merely odd: each is its own end at most, and what decodes is shown."""

from __future__ import annotations

import io
import random
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)
from tests.support import hostile_pictures
from tests.support.decoder_processes import decoders, peak_memory
from tests.support.hostile_pictures import encoded, noise
from tests.support.mutations import damaged_bytes
from tests.unit.jobs.data.test_dicom import RAMP, SHIPPED, grey, item, made, read, save

from medgr2_jobs.data.decoder import client, limits
from medgr2_jobs.data.record import BadRecord, Record
from medgr2_jobs.store.images import ImageStore
from medgr2_jobs.store.rows.prepared import SetAside


def colours(root: Path) -> list[tuple[int, ...]]:
    """The colours of the first row of the only image."""
    (record,) = read(root)
    assert isinstance(record, Record), record
    return [tuple(value) for value in np.asarray(ImageStore(root).load(record.image.sha256))[0].tolist()]


def big_endian(dataset: Dataset) -> Dataset:
    """The data set in the byte order that is retired: words are swapped, also those that hold two bytes of a table."""
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    for element in dataset:
        if "OW" in element.VR and isinstance(element.value, bytes):
            element.VR = "OW"
            element.value = np.frombuffer(element.value, "<u2").astype(">u2").tobytes()
    return dataset


def palette(*values: tuple[list[int], type], bits: int = 16) -> dict[str, Any]:
    """Tags of a palette whose three tables have these entries, each of a type."""
    tags: dict[str, Any] = {}
    for colour, (entries, kind) in zip(("Red", "Green", "Blue"), values, strict=True):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [len(entries), 0, bits]
        tags[f"{colour}PaletteColorLookupTableData"] = np.array(entries, kind).tobytes()
    return tags


# -- look-up tables and windows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(("kind", "top", "bits"), [(np.uint16, 65280, 16), (np.uint16, 255, 8), (np.uint8, 255, 8)])
def test_a_palette_of_either_byte_order_and_any_width(
    tmp_path: Path, swapped: bool, kind: type, top: int, bits: int
) -> None:
    tags = palette(([0, top, 0, 0], kind), ([top, 0, 0, top], kind), ([0, 0, 0, top], kind), bits=bits)
    dataset = made(np.array([[0, 1, 2, 3]], np.uint16), PhotometricInterpretation="PALETTE COLOR", **tags)
    for element in dataset:
        if "LookupTableData" in element.keyword:
            element.VR = "OW"
    save(tmp_path, big_endian(dataset) if swapped else dataset)
    bright = 254 if top == 65280 else 255
    assert colours(tmp_path) == [(0, bright, 0), (bright, 0, 0), (0, 0, 0), (0, bright, bright)]


@pytest.mark.parametrize("swapped", [False, True])
def test_a_palette_of_bytes_has_no_byte_order(tmp_path: Path, swapped: bool) -> None:
    tags = palette(([0, 255, 0, 0], np.uint8), ([255, 0, 0, 255], np.uint8), ([0, 0, 0, 255], np.uint8), bits=8)
    dataset = made(np.array([[0, 1, 2, 3]], np.uint16), PhotometricInterpretation="PALETTE COLOR", **tags)
    for element in dataset:
        if "LookupTableData" in element.keyword:
            element.VR = "OB"
    save(tmp_path, big_endian(dataset) if swapped else dataset)
    assert colours(tmp_path) == [(0, 255, 0), (255, 0, 0), (0, 0, 0), (0, 255, 255)]


def test_a_palette_of_more_entries_than_fit_into_a_byte(tmp_path: Path) -> None:
    ramp = list(np.arange(512) // 2)
    tags = palette((ramp, np.uint8), (ramp, np.uint8), (ramp, np.uint8), bits=8)
    save(tmp_path, made(np.array([[0, 256, 511, 0]], np.uint16), PhotometricInterpretation="PALETTE COLOR", **tags))
    assert colours(tmp_path) == [(0, 0, 0), (128, 128, 128), (255, 255, 255), (0, 0, 0)]


@pytest.mark.parametrize("swapped", [False, True])
def test_a_segmented_palette(tmp_path: Path, swapped: bool) -> None:
    """PS3.3 C.7.9.2: a discrete segment of one entry, then a line of 255 to the top."""
    tags: dict[str, Any] = {}
    for colour in ("Red", "Green", "Blue"):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"Segmented{colour}PaletteColorLookupTableData"] = np.array([0, 1, 0, 1, 255, 65535], "<u2").tobytes()
    dataset = made(np.array([[0, 51, 255, 0]], np.uint16), PhotometricInterpretation="PALETTE COLOR", **tags)
    save(tmp_path, big_endian(dataset) if swapped else dataset)
    assert colours(tmp_path) == [(0, 0, 0), (51, 51, 51), (255, 255, 255), (0, 0, 0)]


def test_a_voi_table_of_the_other_byte_order(tmp_path: Path) -> None:
    table = item(LUTDescriptor=[400, 0, 12], LUTData=(np.arange(400, dtype=">u2") * 8).astype(">u2").tobytes())
    table["LUTData"].VR = "OW"
    save(tmp_path, big_endian(made(RAMP.astype(np.uint16), VOILUTSequence=[table])))
    assert grey(tmp_path) == [0, 50, 100, 149]


EMPTY = {
    "no tags": item(),
    "no data": item(LUTDescriptor=[4, 0, 16]),
    "empty data": item(LUTDescriptor=[4, 0, 16], LUTData=b""),
    "no bits": item(LUTDescriptor=[4, 0, 0], LUTData=bytes(8)),
}


@pytest.mark.parametrize("kind", EMPTY)
def test_an_empty_table_is_as_good_as_none(tmp_path: Path, kind: str) -> None:
    window = {"WindowCenter": "200.5", "WindowWidth": "401"}
    save(tmp_path, made(RAMP, VOILUTSequence=[EMPTY[kind]], **window))
    assert grey(tmp_path) == [0, 64, 128, 191]
    full = item(LUTDescriptor=[400, 0, 12], LUTData=(np.arange(400, dtype=np.uint16) * 8).tobytes())
    save(tmp_path, made(RAMP.astype(np.uint16), VOILUTSequence=[EMPTY[kind], full], **window))
    assert grey(tmp_path) == [0, 50, 100, 149]
    rescale = {"RescaleSlope": "2", "RescaleIntercept": "-100"}
    save(tmp_path, made(RAMP, ModalityLUTSequence=[EMPTY[kind]], **rescale, **window))
    assert grey(tmp_path) == [0, 64, 191, 255]


@pytest.mark.parametrize(
    "tags",
    [
        {"VOILUTSequence": []},
        {"ModalityLUTSequence": []},
        {"WindowCenter": "100", "WindowWidth": "0"},
        {"WindowCenter": "100", "WindowWidth": "-5"},
        {"WindowCenter": "", "WindowWidth": ""},
        {"WindowCenter": ["", "100"], "WindowWidth": ["0"]},
        {"WindowCenter": "100"},
        {"WindowCenter": "100", "WindowWidth": "0.5"},
        {"WindowCenter": "0", "WindowWidth": "0", "VOILUTFunction": "SIGMOID"},
        {"RescaleSlope": "0", "RescaleIntercept": "5"},
        {"RescaleSlope": "", "RescaleIntercept": ""},
        {"RescaleSlope": "2"},
        {"PixelPaddingValue": None},
    ],
)
def test_a_window_that_makes_no_sense_is_as_good_as_none(tmp_path: Path, tags: dict[str, Any]) -> None:
    save(tmp_path, made(RAMP, **tags))
    assert grey(tmp_path) == [0, 85, 170, 255]


def test_the_first_window_that_makes_sense_counts(tmp_path: Path) -> None:
    save(tmp_path, made(RAMP, WindowCenter=["7", "200.5"], WindowWidth=["0", "401"]))
    assert grey(tmp_path) == [0, 64, 128, 191]


def test_windows_narrower_than_one_are_for_values_that_are_not_whole(tmp_path: Path) -> None:
    dataset = made(RAMP, WindowCenter="0.15", WindowWidth="0.3", VOILUTFunction="LINEAR_EXACT")
    values = RAMP.astype(np.float32) / 1000
    del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
    dataset.BitsAllocated, dataset.FloatPixelData = 32, values.tobytes()
    save(tmp_path, dataset)
    assert grey(tmp_path) == [0, 85, 170, 255]


def test_values_that_are_no_numbers_do_not_hide_the_others(tmp_path: Path) -> None:
    dataset = made(RAMP)
    values = np.array([[0, 0.1, np.nan, 0.3]], np.float32)
    del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
    dataset.BitsAllocated, dataset.FloatPixelData = 32, values.tobytes()
    save(tmp_path, dataset)
    assert grey(tmp_path) == [0, 85, 0, 255]


# -- what claims or becomes too much -----------------------------------------------------------------------------------


def compressed(syntax: str, stream: bytes, *, rows: int = 16, columns: int = 16, **tags: Any) -> Dataset:
    """A data set of one grey frame with this codestream."""
    dataset = made(np.zeros((rows, columns), np.uint8), **tags)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return dataset


def refused(root: Path) -> BadRecord:
    """The only record, which is a bad one; within little memory and time, and the next file is read."""
    client.close()
    started = time.monotonic()
    (bad,) = read(root, burned_in_text="TrustFlag")
    assert isinstance(bad, BadRecord)
    assert time.monotonic() - started < 20
    assert not decoders() or peak_memory() < limits.MEMORY
    return bad


JPEG = encoded(noise(16, 16, channels=1), "JPEG")
LOSSLESS = encoded(noise(16, 16, channels=1), "JPEG2000", no_jp2=True)
LARGE_JPEG = JPEG[: JPEG.index(b"\xff\xc0") + 5] + b"\xff\xff\xff\xff" + JPEG[JPEG.index(b"\xff\xc0") + 9 :]


@pytest.mark.parametrize(
    ("syntax", "stream"),
    [
        (JPEG2000Lossless, hostile_pictures.codestream_2000(20_000, 20_000)),
        (JPEG2000Lossless, hostile_pictures.codestream_2000(16, 16, components=16_000)),
        (JPEG2000Lossless, b"\0" * 64),
        (JPEGBaseline8Bit, LARGE_JPEG),
        (JPEGBaseline8Bit, b"\xff\xd8" + b"\xff" * 64),
        (JPEGLSLossless, b"\xff\xd8\xff\xf7\x00\x0b\x08\x4e\x20\x4e\x20\x01\x01\x11\x00" + bytes(64)),
        (RLELossless, b"\xff\xff\xff\x7f" + bytes(60)),
    ],
)
def test_a_codestream_has_the_size_that_the_file_says(tmp_path: Path, syntax: str, stream: bytes) -> None:
    save(tmp_path, compressed(syntax, stream))
    assert refused(tmp_path).field == "PixelData"


@pytest.mark.parametrize(("syntax", "stream"), [(JPEGBaseline8Bit, JPEG), (JPEG2000Lossless, LOSSLESS)])
def test_one_that_has_is_decoded(tmp_path: Path, syntax: str, stream: bytes) -> None:
    save(tmp_path, compressed(syntax, stream))
    (record,) = read(tmp_path, burned_in_text="TrustFlag")
    assert isinstance(record, Record)
    assert (record.image.width, record.image.height) == (16, 16)


def test_a_deflated_file_is_inflated_within_bounds(tmp_path: Path) -> None:
    save(tmp_path, made(RAMP))
    data = (tmp_path / "scans/a.dcm").read_bytes()
    dataset = made(RAMP)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    save(tmp_path, dataset)
    assert grey(tmp_path) == [0, 85, 170, 255]
    data = (tmp_path / "scans/a.dcm").read_bytes()
    head = data[: data.index(b"1.2.840.10008.1.2.1.99") + 22]
    head = head[: 144 + int.from_bytes(data[140:144], "little")]
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    zeros = bytes(2**20)
    head = data[: 144 + int.from_bytes(data[140:144], "little")]
    body = compressor.compress(b"\x09\x00\x10\x10OB\0\0" + (3 * 2**30).to_bytes(4, "little"))
    body += b"".join(compressor.compress(zeros) for _ in range(600)) + compressor.flush()
    (tmp_path / "scans/a.dcm").write_bytes(head + body)
    assert "inflates to more than 256 MiB" in refused(tmp_path).reason


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"Rows": 10_900, "Columns": 10_900, "BitsAllocated": 64}, "take"),
        ({"Rows": 65_535, "Columns": 65_535, "BitsAllocated": 1}, "claims 4,294,836,225 samples"),
        ({"Rows": 0}, "claims 0 samples"),
        ({"NumberOfFrames": "2147483647"}, "cannot be decoded"),
        ({"NumberOfFrames": "-5", "Rows": 9}, "cannot be decoded"),
        ({"SamplesPerPixel": 60_000, "Rows": 3_000}, "claims"),
        ({"BitsAllocated": 0}, "cannot be decoded"),
        ({"BitsStored": 0}, "cannot be decoded"),
    ],
)
def test_what_a_file_claims_is_looked_at_first(tmp_path: Path, tags: dict[str, Any], reason: str) -> None:
    save(tmp_path, made(RAMP, **tags))
    assert reason in refused(tmp_path).reason


def test_a_large_frame_of_many_bits_is_decoded_in_little_memory(tmp_path: Path) -> None:
    client.close()
    values = np.arange(6_000, dtype=np.uint16)[:, None] + np.zeros((1, 6_000), np.uint16)
    save(tmp_path, made(values, RescaleSlope="1.5", RescaleIntercept="-7"))
    (record,) = read(tmp_path, burned_in_text="TrustFlag")
    assert isinstance(record, Record)
    assert peak_memory() < 600 * 2**20, "as floating point it would be 288 MB, several times over"


# -- damage ------------------------------------------------------------------------------------------------------------


def test_what_crashes_a_decoder_is_set_aside_and_the_next_file_is_read(tmp_path: Path) -> None:
    """These bytes make GDCM call std::terminate."""
    data = (SHIPPED / "test_files/SC_rgb_jpeg_dcmtk.dcm").read_bytes()
    rng, found = random.Random(0), ""
    (tmp_path / "scans").mkdir()
    save(tmp_path, made(RAMP), "b.dcm")
    start = data.index(b"\xff\xd8\xff")
    for _ in range(4000):
        changed = bytearray(data)
        for _ in range(2):
            changed[rng.randrange(start, start + 700)] ^= 1 << rng.randrange(8)
        (tmp_path / "scans/a.dcm").write_bytes(changed)
        first, second = read(tmp_path)
        assert isinstance(second, Record)
        if isinstance(first, BadRecord) and "crashes" in first.reason:
            assert (first.where, first.field) == ("a.dcm", "PixelData")
            found = first.reason
            break
    assert "crashes the decoder (SIG" in found


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_are_read_or_set_aside(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    files = [path for path in sorted((SHIPPED / "test_files").glob("*.dcm")) if path.stat().st_size < 200_000]
    (tmp_path / "scans").mkdir()
    ends = set()
    for _ in range(60):
        (tmp_path / "scans/a.dcm").write_bytes(damaged_bytes(rng, rng.choice(files).read_bytes()))
        for record in read(tmp_path, max_frames=2):
            ends.add(type(record))
            str(record).encode()
    assert ends == {Record, BadRecord}


# -- what is no picture ------------------------------------------------------------------------------------------------


def test_what_is_no_picture_and_what_is_withheld_are_told_apart_from_damage(tmp_path: Path) -> None:
    report = made(RAMP, Modality="SR")
    del report.PixelData
    save(tmp_path, report, "a-report.dcm")
    save(tmp_path, made(RAMP, Modality="SEG"), "b-segmentation.dcm")
    save(tmp_path, made(RAMP, SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4", Modality="OT"), "c-segmentation.dcm")
    save(tmp_path, made(RAMP, BurnedInAnnotation="YES"), "d-annotated.dcm")
    save(tmp_path, made(RAMP, PhotometricInterpretation="XYB"), "e-odd.dcm")
    save(tmp_path, made(RAMP), "f-good.dcm")
    kinds = [record.kind if isinstance(record, BadRecord) else None for record in read(tmp_path)]
    assert kinds == [*[SetAside.NO_PICTURE] * 3, SetAside.WITHHELD, SetAside.UNUSABLE, None]


def test_text_in_the_pixels_is_withheld(tmp_path: Path) -> None:
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("L", (400, 300), 20)
    ImageDraw.Draw(image).text((20, 20), "DOE JANE 1970-01-01", fill=255, font=ImageFont.load_default(size=24))
    save(tmp_path, made(np.asarray(image)))
    save(tmp_path, made(np.stack([np.asarray(image) * 0 + 7, np.asarray(image)]), NumberOfFrames="2"), "b.dcm")
    one, several = read(tmp_path, max_frames=2)
    for bad in (one, several):
        assert isinstance(bad, BadRecord)
        assert bad.kind is SetAside.WITHHELD
    assert not list((tmp_path / "images").rglob("*.png")), "and nothing of it was stored"


def test_pydicoms_palettes_come_out_alike(tmp_path: Path) -> None:
    """What it reads rightly, we read alike."""
    from pydicom.pixels.processing import apply_color_lut

    from medgr2_jobs.data.decoder import dicom_luts

    for path in sorted((SHIPPED / "test_files").glob("*.dcm")):
        dataset = pydicom.dcmread(io.BytesIO(path.read_bytes()), force=True)
        if dataset.get("PhotometricInterpretation") == "PALETTE COLOR" and "PixelData" in dataset:
            stored = dataset.pixel_array
            theirs = apply_color_lut(stored, dataset)
            ours = dicom_luts.palette(dataset, big_endian=False)(stored)
            assert np.array_equal(ours, theirs), path.name
