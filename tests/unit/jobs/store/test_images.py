"""The image store: content addressed, pixels only, damaged files refused by name."""

from __future__ import annotations

import contextlib
import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from medgr2_jobs.errors import ConfigError, CorruptArtifact, DataError, DiskFull
from medgr2_jobs.store.images import ImageStore

LIMIT = 1_000_000


def picture(size: tuple[int, int] = (40, 30), seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def test_same_pixels_same_name_and_nothing_but_pixels(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    image = picture()
    text = PngImagePlugin.PngInfo()
    text.add_text("Patient", "Jane Doe")
    exif = Image.Exif()
    exif[0x010F] = "Scanner of ward 7"
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "told.png", pnginfo=text, exif=exif, icc_profile=b"profile of Jane", compress_level=0)
    image.save(tmp_path / "other.bmp")
    stored = {store.add_file(tmp_path / name, LIMIT) for name in ("plain.png", "told.png", "other.bmp")}
    assert len(stored) == 1
    (one,) = stored
    data = store.path(one.sha256).read_bytes()
    assert not any(word in data for word in (b"Jane", b"ward", b"eXIf", b"iCCP", b"tEXt"))
    assert np.array_equal(np.asarray(store.load(one.sha256)), np.asarray(image))
    assert (one.width, one.height) == image.size
    assert not list((tmp_path / "images").rglob("*.tmp"))


def test_orientation_is_applied_before_it_is_dropped(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90° to see it upright
    picture().save(tmp_path / "turned.png", exif=exif)
    stored = ImageStore(tmp_path).add_file(tmp_path / "turned.png", LIMIT)
    assert (stored.width, stored.height) == (30, 40)


def test_scaled_down_to_the_limit(tmp_path: Path) -> None:
    stored = ImageStore(tmp_path).add(picture((400, 300)), 10_000)
    assert stored.width * stored.height <= 10_000
    assert stored.width / stored.height == pytest.approx(4 / 3, rel=0.05)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "I;16", "CMYK"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.new("I;16", (8, 8), 40_000) if mode == "I;16" else picture().convert(mode)
    image.save(tmp_path / "x.tiff")
    store = ImageStore(tmp_path)
    assert store.load(store.add_file(tmp_path / "x.tiff", LIMIT).sha256).mode == "RGB"


def test_unreadable_files_are_data_errors(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "folder.png").mkdir()
    for name in ("missing.png", "empty.png", "text.png", "folder.png", "text.png/below.png", "x" * 300):
        with pytest.raises(DataError, match=name[:20]):
            store.add_file(tmp_path / name, LIMIT)


def test_bomb_is_not_opened(tmp_path: Path) -> None:
    Image.new("1", (20_000, 7_000)).save(tmp_path / "bomb.png")
    with pytest.raises(DataError, match="not opened"):
        ImageStore(tmp_path).add_file(tmp_path / "bomb.png", LIMIT)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"])
def test_damaged_files_never_raise_anything_else(tmp_path: Path, kind: str) -> None:
    rng = random.Random(kind)
    buffer = io.BytesIO()
    picture().save(buffer, kind)
    whole = buffer.getvalue()
    store, path = ImageStore(tmp_path), tmp_path / "damaged"
    refused = 0
    for _ in range(60):
        data = bytearray(whole[: rng.randrange(4, len(whole))] if rng.random() < 0.5 else whole)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(min(200, len(data)))] = rng.randrange(256)
        path.write_bytes(data)
        with contextlib.suppress(DataError):
            store.add_file(path, LIMIT)
            continue
        refused += 1
    assert refused > 5


def test_full_disk_is_not_blamed_on_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    picture().save(tmp_path / "x.png")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskFull, match="free some space"):
        ImageStore(tmp_path).add_file(tmp_path / "x.png", LIMIT)


def test_changed_and_missing_images_are_found_and_repaired(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    sha256 = store.add(picture(), LIMIT).sha256
    path = store.path(sha256)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"x")  # same size
    with pytest.raises(CorruptArtifact, match="changed"):
        store.load(sha256)
    store.add(picture(), LIMIT)
    assert path.read_bytes() == data
    path.unlink()
    with pytest.raises(CorruptArtifact, match="missing"):
        store.load(sha256)


def test_names_cannot_lead_out(tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    store = ImageStore(root)
    for name in ("../../etc/passwd", "/etc/passwd", "ab" * 31, "AB" * 32, ("ab" * 32) + "\n", ""):
        with pytest.raises(CorruptArtifact, match="not the name of an image"):
            store.load(name)
    sha256 = store.add(picture(), LIMIT).sha256
    outside = tmp_path / "outside.png"
    store.path(sha256).rename(outside)
    store.path(sha256).symlink_to(outside)
    with pytest.raises(ConfigError, match="leads out"):
        store.load(sha256)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_pictures_of_many_greys_are_shown_from_dark_to_bright(tmp_path: Path, dtype: type) -> None:
    values = np.array([[1000, 2000, 3000, 5000]], dtype)
    Image.fromarray(values).save(tmp_path / "x.tif")
    store = ImageStore(tmp_path)
    shown = store.load(store.add_file(tmp_path / "x.tif", LIMIT).sha256)
    assert [shown.getpixel((x, 0)) for x in range(4)] == [(v, v, v) for v in (0, 64, 128, 255)]
    Image.fromarray(np.full((2, 2), 7, dtype)).save(tmp_path / "flat.tif")
    assert store.load(store.add_file(tmp_path / "flat.tif", LIMIT).sha256).getpixel((0, 0)) == (0, 0, 0)
