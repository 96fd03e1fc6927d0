"""Picture files as RGB: upright, on white where they are transparent, without anything but pixels. Runs in the decoder
process.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageDraw,
    ImageFont,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from ...duplicates.phash_index import phash
from ...store.images import encode, shrunk
from . import limits
from .protocol import BadField, Message

#: What is opened. Pillow knows thirty more, some of which start other programs (PostScript) or hold no pictures.
FORMATS = tuple(
    str(plugin.format)
    for plugin in (
        PngImagePlugin.PngImageFile,
        JpegImagePlugin.JpegImageFile,
        TiffImagePlugin.TiffImageFile,
        GifImagePlugin.GifImageFile,
        BmpImagePlugin.BmpImageFile,
        WebPImagePlugin.WebPImageFile,
        Jpeg2KImagePlugin.Jpeg2KImageFile,
        PpmImagePlugin.PpmImageFile,
    )
)
#: Bytes of a pixel as Pillow keeps it; all other modes take four.
_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
_RGB = 4  # bytes of a pixel
_ORIENTATION = 0x0112  # EXIF
_PHOTOMETRIC = 262  # TIFF
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: By what Pillow multiplies the greys of PNG files of 2 and 4 bits.
_SCALED: dict[Any, int] = {"L;2": 85, "L;4": 17}
_BAND = 2**22  # pixels that are worked on at once, where that takes more memory than the picture itself
_GAP, _HEAD = 12, 28


def answer(request: Message) -> Iterator[Message]:
    """The picture of a file, or of the bytes that came along."""
    path = request.header.get("path")
    data = request.payload if path is None else limits.read_file(path)
    yield finished(decoded(data), request.header["max_pixels"])


def finished(image: Image.Image, max_pixels: int, **more: Any) -> Message:
    """The reply that brings a picture, as the store keeps it. Its perceptual hash comes along while the pixels are at
    hand: the stage would have to decode it again."""
    small = shrunk(image, max_pixels)
    stored = encode(small, max_pixels)
    header = {"width": stored.width, "height": stored.height, "one_colour": stored.one_colour, "phash": phash(small)}
    return Message({**header, **more}, stored.png)


def joined(embedded: Sequence[tuple[str, bytes]], max_pixels: int) -> tuple[Image.Image, list[str]]:
    """One picture of one or several that are embedded in a record, each with its field; of several the names that the
    store would give each alone, too.

    Raises:
        BadField: one of them cannot be used.
    """
    taken = []
    for field, data in embedded:
        try:
            # seven small files can be seven huge pictures: each is scaled down before they are laid side by side
            taken.append(shrunk(decoded(data), max_pixels))
        except BadField as bad:
            raise BadField(field, bad.reason) from None
    if len(taken) == 1:
        return taken[0], []
    return side_by_side(taken), [encode(picture, max_pixels).sha256 for picture in taken]


def decoded(data: bytes) -> Image.Image:
    """The first frame or page of a picture file as RGB, upright, transparent pixels on white.

    Raises:
        BadField: it is none that we open, damaged, or too large.
        MemoryError: it takes more memory than it claimed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damage, and bombs: both are looked after here
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                own = _BYTES.get(image.mode, 4)
                # as it is, and as it is converted or turned
                limits.check(image.width, image.height, own + max(own, _RGB * (image.mode != "RGB")), len(data))
                raw_mode = image.tile[0].args if image.tile else None
                image.load()
                turn = _turn(image)  # not before: of some formats it loads the picture, others are upright by now
                return _rgb(image.transpose(turn) if turn is not None else image, raw_mode)
    except (BadField, MemoryError):
        raise
    except UnidentifiedImageError:
        raise BadField("-", f"not a readable image (none of {', '.join(FORMATS)})") from None
    except BaseException as error:  # each format has a decoder of its own, and errors of its own
        raise BadField("-", f"not a readable image ({limits.what(error)})") from None


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How to set it upright. The orientation goes with the rest of the EXIF data: it is applied, or left becomes
    right. Where that data is damaged the picture is taken as it lies."""
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return None


def _rgb(image: Image.Image, raw_mode: Any) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _many_greys(image)
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    on_white = Image.new("RGB", image.size)
    transparent = _eight_bits(image.info.get("transparency"), raw_mode)
    for top, bottom in _bands(image):
        part = image.crop((0, top, image.width, bottom))
        part.info = {} if transparent is None else {"transparency": transparent}
        if part.mode in ("La", "RGBa"):
            part = part.convert(part.mode.replace("a", "A"))
        part = part.convert("RGBA")
        ground = Image.new("RGBA", part.size, "white")
        on_white.paste(Image.alpha_composite(ground, part).convert("RGB"), (0, top))
    return on_white


def _eight_bits(transparent: Any, raw_mode: Any) -> Any:
    """The colour that is transparent, if it is one, as the pixels have it: these come with 8 bits, it as the file has
    it, of 2, 4 or 16 bits."""
    if isinstance(transparent, tuple) and max(transparent) > 255:
        return tuple(value >> 8 for value in transparent)
    return transparent * _SCALED.get(raw_mode, 1) if isinstance(transparent, int) else transparent


def _many_greys(image: Image.Image) -> Image.Image:
    """A grey picture of more than 8 bits, from its darkest to its brightest value, transparent pixels white and those
    that are no numbers black.

    Pillow itself would cut such values off at 255: a 16-bit picture would be white. Nor does it turn over a TIFF file
    in which 0 is white, as it does one of 8 bits.
    """
    transparent = image.info.get("transparency")
    negative = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0
    opaque = (
        values[np.isfinite(values) & (values != transparent) if transparent is not None else np.isfinite(values)]
        for _, values in _values(image)
    )
    extremes = [(values.min(), values.max()) for values in opaque if values.size]
    grey = Image.new("L", image.size, "white")
    if not extremes:
        return grey.convert("RGB")
    low, high = min(low for low, _ in extremes), max(high for _, high in extremes)
    for top, values in _values(image):
        share = (values - low) / (high - low) if high > low else np.zeros_like(values)
        share = share.clip(0, 1)
        shown = np.round(np.nan_to_num(1 - share if negative else share) * 255).astype(np.uint8)
        shown[~np.isfinite(values)] = 0
        if transparent is not None:
            shown[values == transparent] = 255
        grey.paste(Image.fromarray(shown), (0, top))
    return grey.convert("RGB")


def _values(image: Image.Image) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """The values of each band, and the row where it begins."""
    for top, bottom in _bands(image):
        yield top, np.asarray(image.crop((0, top, image.width, bottom)), np.float64)


def _bands(image: Image.Image) -> Iterator[tuple[int, int]]:
    """Rows from, and up to, of bands of the picture."""
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        yield top, min(image.height, top + rows)


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """One picture of several: left to right, each under its number, on white."""
    width = sum(picture.width for picture in pictures) + _GAP * (len(pictures) + 1)
    height = max(picture.height for picture in pictures) + _HEAD + _GAP
    limits.check(width, height, 2 * _RGB)  # a long narrow one beside a long flat one
    whole = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(size=_HEAD * 0.7)
    left = _GAP
    for number, picture in enumerate(pictures, 1):
        draw.text((left, _HEAD * 0.1), f"<image {number}>", fill="black", font=font)
        whole.paste(picture, (left, _HEAD))
        left += picture.width + _GAP
    return whole
