"""The image store: PNG files named by the sha256 of their bytes; RGB, without EXIF or any other metadata."""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from medgr2_api import paths

from ..errors import CorruptArtifact
from . import atomic
from .safe_path import inside

_ALIKE = 4  # of 255, by which the values of one colour may differ
_NAME = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class StoredImage:
    """An image in the store."""

    sha256: str
    width: int
    height: int
    one_colour: bool = False
    """Whether its pixels are alike, but for what lossy compression makes of one colour."""
    phash: str = ""
    """Its perceptual hash (`duplicates/phash_index.py`), where whoever decoded it computed that, too."""
    parts: tuple[str, ...] = ()
    """What it was made of, where that is more than one picture: who has such a part has something of it. The sha256 of
    pictures that were joined, the name of a study's file of many frames."""


@dataclass(frozen=True)
class EncodedImage:
    """An image as the store keeps it: pixels only, no EXIF, no profile, no text."""

    png: bytes
    width: int
    height: int
    one_colour: bool
    phash: str = ""
    parts: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Its name in the store."""
        return hashlib.sha256(self.png).hexdigest()

    @property
    def stored(self) -> StoredImage:
        """What is known of it once it is stored."""
        return StoredImage(self.sha256, self.width, self.height, self.one_colour, self.phash, self.parts)


def shrunk(image: Image.Image, max_pixels: int) -> Image.Image:
    """The picture, scaled down to at most `max_pixels`."""
    pixels = image.width * image.height
    if pixels <= max_pixels:
        return image
    scale = (max_pixels / pixels) ** 0.5
    size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def encode(image: Image.Image, max_pixels: int) -> EncodedImage:
    """A picture as the store keeps it: RGB, scaled down to at most `max_pixels`."""
    small = shrunk(image.convert("RGB") if image.mode != "RGB" else image, max_pixels)
    clean = Image.frombytes("RGB", small.size, small.tobytes())  # pixels only: no EXIF, no profile, no text
    buffer = io.BytesIO()
    clean.save(buffer, "PNG", compress_level=6)
    one_colour = bool(np.ptp(np.asarray(clean), axis=(0, 1)).max() <= _ALIKE)
    return EncodedImage(buffer.getvalue(), clean.width, clean.height, one_colour=one_colour)


class ImageStore:
    """Content-addressed images of a workspace, shared by all its cycles."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, sha256: str) -> Path:
        """Where an image lies.

        Raises:
            CorruptArtifact: the name is not a sha256; names come from tables and become paths.
        """
        if not _NAME.fullmatch(sha256):
            raise CorruptArtifact(f"{sha256[:80]!r}: not the name of an image; the table that holds it is damaged")
        return self.root / paths.image(sha256)

    def sync(self) -> None:
        """Makes all images that were added durable; call before publishing what names them."""
        atomic.sync_all()

    def add(self, image: Image.Image, max_pixels: int) -> StoredImage:
        """Stores a picture of our own making as RGB, scaled down to at most `max_pixels`; on the disk for good after
        `sync`. Files of others are opened by the decoder (`data/decoder`) alone."""
        return self.put(encode(image, max_pixels))

    def put(self, image: EncodedImage) -> StoredImage:
        """Stores an encoded picture; on the disk for good after `sync`."""
        stored = image.stored
        path = self.path(stored.sha256)
        if not path.is_file() or path.read_bytes() != image.png:  # a damaged one is repaired
            with atomic.atomic_file(path, durable=False) as stream:
                stream.write(image.png)
        return stored

    def read(self, sha256: str) -> bytes:
        """The PNG file's bytes, verified.

        Raises:
            ConfigError: a symlink leads out of the workspace.
            CorruptArtifact: missing or changed.
        """
        path = self.path(sha256)
        inside(self.root, str(paths.image(sha256)), "image")
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise CorruptArtifact(f"{path}: missing from the image store; {_REMEDY}") from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise CorruptArtifact(f"{path}: changed since it was stored; {_REMEDY}")
        return data

    def load(self, sha256: str) -> Image.Image:
        """The picture, verified; raises what `read` raises."""
        return Image.open(io.BytesIO(self.read(sha256)), formats=("PNG",)).convert("RGB")


_REMEDY = "run stage prepare again (`--restart-from`), which repairs it"
