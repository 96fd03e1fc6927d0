"""Picture files: upright, on white, pixels only; whatever is wrong with one is its own end and nobody else's."""

from __future__ import annotations

import contextlib
import io
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from tests.support import hostile_pictures
from tests.support.decoder_processes import peak_memory
from tests.support.hostile_pictures import encoded, noise
from tests.support.mutations import damaged_bytes

from medgr2_jobs.data.decoder import client, limits
from medgr2_jobs.data.decoder.protocol import BadField
from medgr2_jobs.store.images import EncodedImage, ImageStore

LIMIT = 1_000_000


def shown(image: EncodedImage | bytes, tmp_path: Path) -> Image.Image:
    """What is stored of a picture, or of a file's bytes."""
    image = client.picture(image, LIMIT) if isinstance(image, bytes) else image
    store = ImageStore(tmp_path)
    return store.load(store.put(image).sha256)


def test_same_pixels_same_name_and_nothing_but_pixels(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    image = noise()
    text = PngImagePlugin.PngInfo()
    text.add_text("Patient", "Jane Doe")
    exif = Image.Exif()
    exif[0x010F] = "Scanner of ward 7"
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "told.png", pnginfo=text, exif=exif, icc_profile=b"profile of Jane", compress_level=0)
    image.save(tmp_path / "other.bmp")
    names = ("plain.png", "told.png", "other.bmp")
    (one,) = {store.put(client.picture(tmp_path / name, LIMIT)) for name in names}
    data = store.path(one.sha256).read_bytes()
    assert not any(word in data for word in (b"Jane", b"ward", b"eXIf", b"iCCP", b"tEXt"))
    assert np.array_equal(np.asarray(store.load(one.sha256)), np.asarray(image))
    assert (one.width, one.height) == image.size
    assert not list((tmp_path / "images").rglob("*.tmp"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_orientation_is_applied_before_it_is_dropped(tmp_path: Path, kind: str, orientation: int) -> None:
    """Of nine values eight mean something; Pillow's own function says what."""
    image = Image.fromarray(np.kron(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20, np.ones((16, 16), np.uint8)))
    turns = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT], 3: [Image.Transpose.ROTATE_180], 4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE], 6: [Image.Transpose.ROTATE_270], 7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_90],
    }.get(orientation, [])  # fmt: skip
    options = {"lossless": True} if kind == "WEBP" else {}
    found = shown(encoded(image.convert("RGB"), kind, exif=hostile_pictures.turned(orientation), **options), tmp_path)
    for turn in turns:
        image = image.transpose(turn)
    assert found.size == image.size
    assert np.abs(np.asarray(found.convert("L"), int) - np.asarray(image, int)).max() < 12


def test_a_picture_whose_exif_data_is_damaged_is_taken_as_it_lies(tmp_path: Path) -> None:
    image = noise()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(range(200))
    assert shown(encoded(image, "PNG", exif=exif), tmp_path).size == image.size


def _tiff(values: np.ndarray, photometric: int = 1) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "TIFF", tiffinfo={262: photometric})
    return stream.getvalue()


def _shown(data: bytes) -> np.ndarray:
    """(H, W): how bright it is."""
    picture = client.picture(data, limits.MAX_PIXELS)
    return np.asarray(Image.open(io.BytesIO(picture.png)).convert("L"))


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_tiff_in_which_0_is_white_is_not_taken_for_its_negative(dtype: type) -> None:
    values = np.tile(np.array([0, 0, 0, 100, 200], dtype), (8, 2))  # mostly white
    shown = _shown(_tiff(values, photometric=0))[0, :5].astype(int)
    assert shown[0] == 255
    assert shown[0] > shown[3] > shown[4]
    upright = _shown(_tiff(values))[0, :5].astype(int)
    assert upright[0] == 0
    assert upright[0] < upright[3] < upright[4]


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_no_numbers_are_black_and_leave_the_others_their_contrast(number: float) -> None:
    values = np.tile(np.array([1000, 1050, 1100, number], np.float32), (8, 2))
    shown = _shown(_tiff(values))[0, :4]
    assert shown.tolist() == [0, 128, 255, 0]


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "I;16", "CMYK"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.new("I;16", (8, 8), 40_000) if mode == "I;16" else noise().convert(mode)
    assert shown(encoded(image, "TIFF"), tmp_path).mode == "RGB"


# -- transparency ------------------------------------------------------------------------------------------------------

#: A black stroke on a ground that nobody sees, which is black, too: alpha of each pixel of one row.
ALPHA = np.array([[0, 0, 255, 255, 128, 0]] * 4, np.uint8)
SEEN = [255, 255, 0, 0, 127, 255]


def _palette() -> bytes:
    image = Image.new("P", (6, 4))
    image.putpalette([0, 0, 0] * 3)
    image.putdata(np.select([ALPHA == 0, ALPHA == 255], [0, 1], 2).ravel().tolist())
    return encoded(image, "PNG", transparency=bytes([0, 255, 128]))


def _sixteen_bits(channels: int) -> bytes:
    """PNG of 16 bits with alpha, which Pillow does not write."""
    values = np.zeros((4, 6, channels), ">u2")
    values[..., -1] = ALPHA.astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    plain = hostile_pictures.png(size=(6, 4), depth=16, kind={2: 4, 4: 6}[channels])
    return hostile_pictures.with_pixels(plain, rows)


def _transparent_colour(mode: str, **options: Any) -> bytes:
    """One value is transparent; the stroke has another."""
    grey = np.where(ALPHA > 0, 0, 200).astype(np.uint8)
    image = Image.fromarray(grey).convert(mode)
    return encoded(image, "PNG", **options)


def _rgba(kind: str, **options: Any) -> bytes:
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[..., 3] = ALPHA
    return encoded(Image.fromarray(pixels), kind, **options)


def _premultiplied() -> bytes:
    data = bytearray(_rgba("TIFF"))
    place = data.index((338).to_bytes(2, "little"))  # ExtraSamples: 2 is plain alpha, 1 is premultiplied
    data[place + 8] = 1
    return bytes(data)


TRANSPARENT = {
    "RGBA": lambda: _rgba("PNG"),
    "RGBA, TIFF": lambda: _rgba("TIFF"),
    "RGBA, premultiplied": _premultiplied,
    "RGBA, WebP": lambda: _rgba("WEBP", lossless=True, exact=True),
    "RGBA, JPEG 2000": lambda: _rgba("JPEG2000"),
    "LA": lambda: encoded(Image.merge("LA", (Image.new("L", (6, 4)), Image.fromarray(ALPHA))), "PNG"),
    "palette": _palette,
    "16 bits, grey": lambda: _sixteen_bits(2),
    "16 bits, colour": lambda: _sixteen_bits(4),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_a_transparent_picture_lies_on_white(tmp_path: Path, kind: str) -> None:
    found = np.asarray(shown(TRANSPARENT[kind](), tmp_path).convert("L"), int)
    assert np.abs(found[0] - SEEN).max() <= 2, found[0]


#: Here a value is seen through or not: the half transparent pixel is black.
STROKE = [255, 255, 0, 0, 0, 255]


@pytest.mark.parametrize(
    ("mode", "transparent"),
    [("L", 200), ("RGB", (200, 200, 200)), ("1", 255), ("P", 200)],
)
def test_a_transparent_colour_is_white(tmp_path: Path, mode: str, transparent: Any) -> None:
    if mode == "P":
        image = Image.fromarray(np.where(ALPHA > 0, 1, 0).astype(np.uint8), "P")
        image.putpalette([90, 90, 90, 0, 0, 0])
        data = encoded(image, "GIF", transparency=0)
    else:
        data = _transparent_colour(mode, transparency=transparent)
    assert np.asarray(shown(data, tmp_path).convert("L"))[0].tolist() == STROKE


@pytest.mark.parametrize("depth", [1, 2, 4, 16])
def test_a_transparent_grey_of_other_depths_is_white(tmp_path: Path, depth: int) -> None:
    """The value stands in the depth of the file, whatever depth the pixels come back in."""
    values = np.where(ALPHA > 0, 0, 1).astype(np.uint16)
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in values * 1000 + np.arange(6) * 9 * (1 - values)]
        transparent = 1000
    else:
        per_byte, shifts = 8 // depth, range(8 - depth, -1, -depth)
        rows = [
            bytes(
                sum(int(value) << shift for value, shift in zip(row[start:], shifts, strict=False))
                for start in range(0, 6, per_byte)
            )
            for row in values
        ]
        transparent = 1
    plain = hostile_pictures.png((b"tRNS", transparent.to_bytes(2, "big")), size=(6, 4), depth=depth, kind=0)
    data = hostile_pictures.with_pixels(plain, b"".join(b"\0" + row for row in rows))
    found = np.asarray(shown(data, tmp_path).convert("L"))[0]
    assert [int(value) for value in found[[0, 1, 5]]] == [255] * 3
    assert found[2] < 255


def test_a_transparent_colour_of_sixteen_bits_is_white(tmp_path: Path) -> None:
    values = np.repeat(np.where(ALPHA > 0, 0, 51_400)[..., None], 3, axis=-1)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    plain = hostile_pictures.png((b"tRNS", (51_400).to_bytes(2, "big") * 3), size=(6, 4), depth=16, kind=2)
    found = np.asarray(shown(hostile_pictures.with_pixels(plain, rows), tmp_path).convert("L"))
    assert found[0].tolist() == STROKE


def test_whether_a_picture_has_one_colour_is_known(tmp_path: Path) -> None:
    for kind in ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "PPM", "JPEG2000"):
        assert client.picture(encoded(Image.new("RGB", (8, 8), (9, 90, 9)), kind), LIMIT).one_colour, kind
        assert not client.picture(encoded(noise(), kind), LIMIT).one_colour, kind
    unseen = encoded(Image.fromarray(np.dstack([np.asarray(noise()), np.zeros((30, 40), np.uint8)])), "PNG")
    assert client.picture(unseen, LIMIT).one_colour
    assert client.picture(encoded(Image.new("I;16", (8, 8), 777), "PNG"), LIMIT).one_colour


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_pictures_of_many_greys_are_shown_from_dark_to_bright(tmp_path: Path, dtype: type) -> None:
    values = np.array([[1000, 2000, 3000, 5000]], dtype)
    found = shown(encoded(Image.fromarray(values), "TIFF"), tmp_path)
    assert [found.getpixel((x, 0)) for x in range(4)] == [(v, v, v) for v in (0, 64, 128, 255)]
    flat = shown(encoded(Image.fromarray(np.full((2, 2), 7, dtype)), "TIFF"), tmp_path)
    assert flat.getpixel((0, 0)) == (0, 0, 0)


# -- what cannot be used -----------------------------------------------------------------------------------------------


def test_files_that_are_not_there_or_are_none(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.png").write_text("not a picture")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    reasons = {
        "missing.png": "image file is missing",
        "text.png": "not a readable image",
        "folder.png": "is a folder",
        "pipe.png": "a pipe, and no file",
        "loop.png": "cannot be opened",
        "text.png/below.png": "cannot be opened",
        "x" * 300: "cannot be opened",
        "nul\0.png": "cannot be opened",
        "half\ud800.png": "cannot be opened",
    }
    for name, reason in reasons.items():
        with pytest.raises(BadField, match=reason):
            client.picture(tmp_path / name, LIMIT)
    with pytest.raises(BadField, match="a device or a pipe"):
        client.picture(Path("/dev/zero"), LIMIT)


@pytest.mark.parametrize("kind", hostile_pictures.foreign())
def test_only_the_formats_of_pictures_are_opened(kind: str) -> None:
    """A PostScript file under a picture's name would start Ghostscript."""
    with pytest.raises(BadField, match="not a readable image"):
        client.picture(hostile_pictures.foreign()[kind], LIMIT)


@pytest.mark.parametrize("kind", hostile_pictures.bombs())
def test_a_small_file_that_becomes_something_large_is_given_up(kind: str, tmp_path: Path) -> None:
    data = hostile_pictures.bombs()[kind]()
    assert len(data) < 2 * 2**20
    started = time.monotonic()
    with contextlib.suppress(BadField):
        image = client.picture(data, LIMIT)
        assert image.width * image.height <= LIMIT
    assert time.monotonic() - started < 60
    assert client.picture(encoded(noise(), "PNG"), LIMIT).width == 40, "the next one is read"
    assert peak_memory() < limits.MEMORY


def test_a_picture_at_the_limit_is_read(tmp_path: Path) -> None:
    Image.new("L", (12_000, 9_990)).save(tmp_path / "large.png")
    assert client.picture(tmp_path / "large.png", LIMIT).one_colour
    Image.new("1", (20_000, 7_000)).save(tmp_path / "bomb.png")
    with pytest.raises(
        BadField, match=r"claims 20000 x 7000 pixels, more than the limit of 120,000,000; it was not op"
    ):
        client.picture(tmp_path / "bomb.png", LIMIT)


@pytest.mark.parametrize("kind", hostile_pictures.ordinary())
def test_damaged_files_never_raise_anything_else(kind: str) -> None:
    rng = random.Random(kind)
    whole = hostile_pictures.ordinary()[kind]
    assert not client.picture(whole, LIMIT).one_colour
    refused = 0
    for _ in range(40):
        try:
            client.picture(damaged_bytes(rng, whole), LIMIT)
        except BadField as bad:
            refused += 1
            bad.reason.encode()
    assert refused > 1
