"""Text in the pixels: found in the usual overlays, not seen in anatomy, and its picture set aside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw, ImageFont
from pydicom.pixels import pixel_array
from tests.unit.jobs.data.test_dicom import made, read, save

from medgr2_jobs.data import burned_in_text
from medgr2_jobs.data.record import BadRecord, Record

SHIPPED = Path(pydicom.__file__).parent / "data/test_files"


def written(
    size: int, side: int = 256, ink: int = 230, ground: int = 30, text: str = "DOE^JANE 1961-04-23"
) -> Image.Image:
    image = Image.new("L", (max(side, 16 * size), side), ground)
    ImageDraw.Draw(image).text((6, 6), text, fill=ink, font=ImageFont.load_default(size=size))
    return image


@pytest.mark.parametrize("size", [12, 18, 28])
def test_a_line_of_letters_is_found_bright_or_dark(size: int) -> None:
    assert burned_in_text.has_text(written(size))
    assert burned_in_text.has_text(written(size, ink=20, ground=220))


@pytest.mark.parametrize("size", [14, 28, 56])
def test_small_letters_are_found_on_a_large_radiograph(size: int) -> None:
    assert burned_in_text.has_text(written(size, side=2500))


@pytest.mark.parametrize("text", ["L", "R 10"])
def test_a_mark_for_the_side_is_no_text(text: str) -> None:
    assert not burned_in_text.has_text(written(18, text=text))


def test_pictures_without_text_are_let_pass() -> None:
    ramp = np.tile(np.linspace(0, 255, 256), (256, 1)).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (256, 256)).astype(np.uint8)
    shipped = [pixel_array(SHIPPED / name) for name in ("CT_small.dcm", "MR_small.dcm", "examples_overlay.dcm")]
    for values in (ramp, noise, *shipped):
        scaled = (values - values.min()) * 255.0 / (values.max() - values.min())
        assert not burned_in_text.has_text(Image.fromarray(scaled.astype(np.uint8)))


def test_the_writing_of_an_ultrasound_is_found() -> None:
    assert burned_in_text.has_text(Image.fromarray(pixel_array(SHIPPED / "examples_rgb_color.dcm")))


def test_text_in_the_pixels_is_set_aside_unless_only_the_flag_counts(tmp_path: Path) -> None:
    save(tmp_path, made(np.asarray(written(18))))
    (bad,) = read(tmp_path)
    assert isinstance(bad, BadRecord)
    assert "looks as if it had text in its pixels" in bad.reason
    assert not (tmp_path / "images").exists()
    (record,) = read(tmp_path, burned_in_text="TrustFlag")
    assert isinstance(record, Record)


def test_text_in_one_frame_sets_the_whole_file_aside(tmp_path: Path) -> None:
    last = np.asarray(written(18))
    clean = np.tile(np.linspace(0, 255, last.shape[1]), (last.shape[0], 1)).astype(np.uint8)
    save(tmp_path, made(np.stack([clean, clean.T.copy().reshape(clean.shape), last]), NumberOfFrames="3"))
    (bad,) = read(tmp_path, max_frames=3)
    assert isinstance(bad, BadRecord)
    assert bad.where == "a.dcm"
    assert not (tmp_path / "images").exists()
