"""Picture files that are made to do harm: small ones that claim, or become, something large; other kinds of files under
a picture's name; and ordinary ones of every format to be damaged by `mutations.damaged_bytes`.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image


def noise(width: int = 40, height: int = 30, seed: int = 0, channels: int = 3) -> Image.Image:
    """A picture in which no two rows are alike."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as a file of some format."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def ordinary() -> dict[str, bytes]:
    """Files of every format that is read, by format and variant."""
    image = noise()
    animated = [noise(seed=seed) for seed in range(4)]
    sixteen = Image.fromarray(np.random.default_rng(0).integers(0, 2**16, (30, 40), np.uint16))
    return {
        "png": encoded(image, "PNG"),
        "png-interlaced-palette": encoded(image.convert("P"), "PNG", transparency=3),
        "png-16": encoded(sixteen, "PNG"),
        "png-alpha": encoded(image.convert("RGBA"), "PNG"),
        "jpeg": encoded(image, "JPEG"),
        "jpeg-progressive": encoded(image, "JPEG", progressive=True, exif=turned(6)),
        "jpeg-cmyk": encoded(image.convert("CMYK"), "JPEG"),
        "tiff": encoded(image, "TIFF"),
        "tiff-lzw": encoded(image, "TIFF", compression="tiff_lzw"),
        "tiff-jpeg": encoded(image, "TIFF", compression="jpeg"),
        "tiff-float": encoded(Image.fromarray(np.linspace(0, 1, 1200, dtype=np.float32).reshape(30, 40)), "TIFF"),
        "gif-animated": encoded(animated[0], "GIF", save_all=True, append_images=animated[1:]),
        "bmp": encoded(image, "BMP"),
        "webp": encoded(image, "WEBP"),
        "webp-animated": encoded(animated[0], "WEBP", save_all=True, append_images=animated[1:], lossless=True),
        "jpeg2000": encoded(image, "JPEG2000"),
        "ppm": encoded(image, "PPM"),
    }


def turned(orientation: int) -> Image.Exif:
    """EXIF data that says how a picture lies."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def png(*chunks: tuple[bytes, bytes], size: tuple[int, int] = (8, 8), depth: int = 8, kind: int = 2) -> bytes:
    """A PNG file of an empty picture of that size, with further chunks before its (few) pixels."""
    header = struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0)
    row = size[0] * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind] * max(1, depth // 8) + 1
    pixels = zlib.compress(bytes(min(row * size[1], 2**20)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b""))
    )


def packed(size: int) -> bytes:
    """That many zeros, compressed a piece at a time."""
    compressor, part = zlib.compressobj(9), bytes(2**20)
    return b"".join(compressor.compress(part) for _ in range(size // len(part))) + compressor.flush()


def codestream_2000(width: int, height: int, components: int = 1) -> bytes:
    """A JPEG 2000 codestream that claims to be of that size."""
    image = encoded(noise(16, 16, channels=1), "JPEG2000", no_jp2=True)
    start = image.index(b"\xff\x4f\xff\x51") + 4
    size = struct.pack(">HH8IH", 41, 0, width, height, 0, 0, width, height, 0, 0, components)
    return image[:start] + size + image[start + len(size) :]


def bombs() -> dict[str, Callable[[], bytes]]:
    """Small files that claim, or become, something large."""
    text = b"Comment\0\0"
    return {
        "png-claims-much": lambda: png(size=(100_000, 100_000)),
        "png-one-bit": lambda: png(size=(60_000, 60_000), depth=1, kind=0),
        "png-wide": lambda: png(size=(2**31 - 1, 1)),
        "png-alpha-near-the-limit": lambda: png(size=(12_000, 9_990), kind=6),
        "png-text": lambda: png((b"zTXt", text + packed(2**28))),
        "png-international-text": lambda: png((b"iTXt", b"Comment\0\1\0\0\0" + packed(2**28))),
        "png-profile": lambda: png((b"iCCP", text + packed(2**28))),
        "png-pixels": lambda: png((b"IDAT", packed(2**28))),
        "gif-screen": lambda: _resized(encoded(noise(), "GIF"), 6, "<HH", 65_535, 65_535),
        "gif-endless": lambda: encoded(noise(), "GIF")[:-1] + b"!\xf9\4\0\0\0\0\0" * 200_000,
        "jpeg-claims-much": lambda: _resized_jpeg(65_500, 65_500),
        "tiff-strip": lambda: _tiff(40, 30, counts=2**32 - 1),
        "tiff-claims-much": lambda: _tiff(200_000, 200_000, counts=3600),
        "tiff-loop": _looping_tiff,
        "bmp-claims-much": lambda: _resized(encoded(noise(), "BMP"), 18, "<ii", 100_000, 100_000),
        "webp-canvas": lambda: _webp_canvas(16_383, 16_383),
        "jpeg2000-claims-much": lambda: codestream_2000(200_000, 200_000),
        "ppm-claims-much": lambda: b"P6 200000 200000 255\n" + bytes(100),
    }


def foreign() -> dict[str, bytes]:
    """Files of other kinds, that are no pictures or start other programs."""
    icon = encoded(noise(32, 32), "ICO")
    return {
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 72 72\n%%EndComments\n(x) = showpage\n%%EOF\n",
        "icon": icon,
        "icns": encoded(noise(32, 32), "ICNS"),
        "fits": b"SIMPLE  =                    T".ljust(2880),
        "wmf": b"\xd7\xcd\xc6\x9a\0\0" + bytes(60),
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "pdf": b"%PDF-1.7\n%%EOF",
        "zip": b"PK\3\4" + bytes(60),
        "psd": b"8BPS\0\1" + bytes(60),
        "pcx": encoded(noise(), "PCX"),
        "empty": b"",
        "text": b"not a picture",
    }


def _resized(data: bytes, at: int, form: str, *values: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, at, *values)
    return bytes(changed)


def _resized_jpeg(width: int, height: int) -> bytes:
    data = encoded(noise(), "JPEG")
    return _resized(data, data.index(b"\xff\xc0") + 5, ">HH", height, width)


def _webp_canvas(width: int, height: int) -> bytes:
    frames = [noise(seed=seed) for seed in range(2)]
    data = bytearray(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True))
    at = data.index(b"VP8X") + 12
    data[at : at + 6] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def _tiff(width: int, height: int, counts: int) -> bytes:
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 200), (277, 3, 1)]
    tags += [(278, 4, height), (279, 4, counts)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return (b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)).ljust(200, b"\0") + bytes(4000)


def _looping_tiff() -> bytes:
    data = bytearray(_tiff(40, 30, counts=1200))
    struct.pack_into("<I", data, 10 + 12 * 9, 8)  # the next directory is this one
    return bytes(data)


def with_pixels(data: bytes, rows: bytes) -> bytes:
    """A PNG file with other pixels: rows with their filter bytes."""
    at = data.index(b"IDAT")
    chunk = b"IDAT" + zlib.compress(rows)
    return data[: at - 4] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + _END


_END = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
