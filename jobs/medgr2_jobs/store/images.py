"""The image store: PNG files named by the sha256 of their bytes; RGB, without EXIF or any other metadata."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

from medgr2_api import workspace
from PIL import Image, UnidentifiedImageError

from ..errors import CorruptArtifact, DataError
from . import atomic

#: A picture that claims more pixels than this is refused before it is decoded (a decompression bomb).
MAX_SOURCE_PIXELS = 120_000_000


@dataclass(frozen=True)
class StoredImage:
    """An image in the store."""

    sha256: str
    width: int
    height: int


class ImageStore:
    """Content-addressed images of a workspace, shared by all its cycles."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, sha256: str) -> Path:
        """Where an image lies."""
        return self.root / workspace.image(sha256)

    def add_file(self, path: Path, max_pixels: int) -> StoredImage:
        """Reads a picture file and stores it.

        Raises:
            DataError: missing, unreadable, truncated, or too large to be a picture; the message names the file.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(path) as image:
                    if image.width * image.height > MAX_SOURCE_PIXELS:
                        raise DataError(
                            f"{path}: claims {image.width} x {image.height} pixels, more than the limit of "
                            f"{MAX_SOURCE_PIXELS:,}; it was not opened. Scale it down first"
                        )
                    return self.add(image.convert("RGB"), max_pixels)
        except FileNotFoundError:
            raise DataError(f"{path}: image file is missing") from None
        except Image.DecompressionBombError as error:
            raise DataError(f"{path}: {error}; it was not opened. Scale it down first") from error
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the disk's fault, not the picture's
                raise
            raise DataError(f"{path}: not a readable image ({error})") from error

    def add(self, image: Image.Image, max_pixels: int) -> StoredImage:
        """Stores an RGB picture, scaled down to at most `max_pixels`."""
        pixels = image.width * image.height
        if pixels > max_pixels:
            scale = (max_pixels / pixels) ** 0.5
            size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
            image = image.resize(size, Image.Resampling.LANCZOS)
        clean = Image.frombytes("RGB", image.size, image.tobytes())  # pixels only: no EXIF, no profile, no text
        buffer = io.BytesIO()
        clean.save(buffer, "PNG", compress_level=6)
        data = buffer.getvalue()
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.path(sha256)
        if not path.exists() or path.stat().st_size != len(data):
            with atomic.atomic_file(path) as stream:
                stream.write(data)
        return StoredImage(sha256, clean.width, clean.height)

    def load(self, sha256: str) -> Image.Image:
        """The picture, verified.

        Raises:
            CorruptArtifact: missing or changed.
        """
        path = self.path(sha256)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise CorruptArtifact(f"{path}: missing from the image store; run prepare again") from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise CorruptArtifact(f"{path}: changed since it was stored; remove it and run prepare again")
        return Image.open(io.BytesIO(data)).convert("RGB")
