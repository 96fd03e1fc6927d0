"""The image store: content addressed, pixels only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medgr2_jobs.errors import ConfigError, CorruptArtifact, DiskFull
from medgr2_jobs.store.images import ImageStore

LIMIT = 1_000_000


def picture(size: tuple[int, int] = (40, 30), seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def test_scaled_down_to_the_limit(tmp_path: Path) -> None:
    stored = ImageStore(tmp_path).add(picture((400, 300)), 10_000)
    assert stored.width * stored.height <= 10_000
    assert stored.width / stored.height == pytest.approx(4 / 3, rel=0.05)


def test_full_disk_is_not_blamed_on_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskFull, match="free some space"):
        ImageStore(tmp_path).add(picture(), LIMIT)


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
