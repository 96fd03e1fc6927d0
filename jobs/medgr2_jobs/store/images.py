"""The image store: PNG files named by the sha256 of their bytes; RGB, without EXIF or any other metadata."""

from __future__ import annotations

import errno
import hashlib
import io
import re
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from medgr2_api import paths

from ..errors import CorruptArtifact, DataError
from . import atomic
from .safe_path import inside

#: A picture that claims more pixels than this is refused before it is decoded (a decompression bomb).
MAX_SOURCE_PIXELS = 120_000_000
_NAME = re.compile(r"[0-9a-f]{64}")
#: What Pillow's decoders raise on damaged files.
_DAMAGED = (OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError, struct.error, zlib.error)
#: File system errors that are about this one path.
UNREADABLE = {errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.ENAMETOOLONG, errno.ELOOP}


@dataclass(frozen=True)
class StoredImage:
    """An image in the store."""

    sha256: str
    width: int
    height: int


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey picture of more than 8 bits, from its darkest to its brightest value; others as they are.

    Pillow itself would cut such values off at 255: a 16-bit picture would be white.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.nan_to_num(np.asarray(image, np.float64), posinf=0.0, neginf=0.0)
    low, high = values.min(), values.max()
    share = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return Image.fromarray(np.round(share * 255).astype(np.uint8))


def shrunk(image: Image.Image, max_pixels: int) -> Image.Image:
    """The picture, scaled down to at most `max_pixels`."""
    pixels = image.width * image.height
    if pixels <= max_pixels:
        return image
    scale = (max_pixels / pixels) ** 0.5
    size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


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

    def add_file(self, path: Path, max_pixels: int) -> StoredImage:
        """Reads a picture file and stores it; raises what `open` raises."""
        return self.add(self.open(path, str(path)), max_pixels)

    def open(self, source: Path | BinaryIO, name: str) -> Image.Image:
        """Reads a picture: upright, RGB.

        Raises:
            DataError: missing, unreadable, truncated, or too large to be a picture; the message begins with `name`.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # damage, and bombs: both are looked after below
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(source) as image:
                    if image.width * image.height > MAX_SOURCE_PIXELS:
                        raise DataError(
                            f"{name}: claims {image.width} x {image.height} pixels, more than the limit of "
                            f"{MAX_SOURCE_PIXELS:,}; it was not opened. Scale it down first"
                        )
                    # the orientation goes with the rest of the EXIF data: apply it first, or left becomes right
                    return _eight_bits(ImageOps.exif_transpose(image)).convert("RGB")
        except FileNotFoundError:
            raise DataError(f"{name}: image file is missing") from None
        except Image.DecompressionBombError as error:
            raise DataError(f"{name}: {error}; it was not opened. Scale it down first") from error
        except _DAMAGED as error:
            number = error.errno if isinstance(error, OSError) else None
            if number is not None and number not in UNREADABLE:  # the disk's fault, not the picture's
                raise
            raise DataError(f"{name}: not a readable image ({error})") from error

    def add(self, image: Image.Image, max_pixels: int) -> StoredImage:
        """Stores a picture as RGB, scaled down to at most `max_pixels`; on the disk for good after `sync`."""
        image = shrunk(image.convert("RGB"), max_pixels)
        clean = Image.frombytes("RGB", image.size, image.tobytes())  # pixels only: no EXIF, no profile, no text
        buffer = io.BytesIO()
        clean.save(buffer, "PNG", compress_level=6)
        data = buffer.getvalue()
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.path(sha256)
        if not path.is_file() or path.read_bytes() != data:  # a damaged one is repaired
            with atomic.atomic_file(path, durable=False) as stream:
                stream.write(data)
        return StoredImage(sha256, clean.width, clean.height)

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
        return Image.open(io.BytesIO(self.read(sha256))).convert("RGB")


_REMEDY = "run stage prepare again (`--restart-from`), which repairs it"
