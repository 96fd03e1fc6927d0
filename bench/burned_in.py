"""How often text in the pixels of a DICOM image is found, and how often something else is taken for it.

make bench NAME=burned_in

Pictures: those that pydicom ships as test data, at least 64 pixels a side, each once. Those with writing of their own
were told by eye and are listed here. Text is drawn into the others: on a black box, as scanners write, or straight onto
the picture, as old workstations did. Large: all of it on pictures enlarged to 2,048 pixels, as radiographs are.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pydicom
from PIL import Image, ImageDraw, ImageFont

from medgr2_api.data import DICOM, BurnedInText, DataFormat, DataSource
from medgr2_jobs.data import burned_in_text, dicom, synthetic_images
from medgr2_jobs.data.pseudonyms import Names
from medgr2_jobs.data.record import Place, Record
from medgr2_jobs.store.images import ImageStore

#: Files whose pictures hold writing, seen by eye.
WRITTEN = ("GDCMJ2K_TextGBR", "examples_jpeg2k", "examples_palette", "examples_rgb_color", "examples_ybr_color")
LINES = ("DOE^JANE 1961-04-23", "ID 0081547 F 62Y", "St. Mary Hospital")
PHANTOMS = 150
SIZES, SHADES = (12, 18, 28), (255, 200, 160)


def pictures(root: Path) -> dict[str, Image.Image]:
    """Name → picture, each picture once."""
    shutil.copytree(Path(pydicom.__file__).parent / "data" / "test_files", root / "files")
    trusting = DICOM(burned_in_text=BurnedInText.TRUST_FLAG)
    source = DataSource(name="files", format=DataFormat.DICOM, uri="files", dicom=trusting)
    store = ImageStore(root)
    place = Place(source, root, root / "files", "files", store, max_pixels=2_000_000, names=Names(b"s", clear=True))
    found = {}
    for record in dicom.read(place):
        if isinstance(record, Record) and min(record.image.width, record.image.height) >= 64:
            found.setdefault(record.image.sha256, (record.image_path, store.load(record.image.sha256)))
    return dict(found.values())


def drawn(root: Path) -> list[Image.Image]:
    """Phantoms: many pictures without writing."""
    synthetic_images.write(root, dataset="p", seed=1, images=PHANTOMS, questions_per_image=0)
    return [Image.open(path).convert("RGB") for path in sorted(root.rglob("*.png"))]


def write(image: Image.Image, size: int, shade: int, corner: int, *, box: bool) -> Image.Image:
    """The picture with three lines of text in a corner, on black or straight onto it."""
    written = enlarged(image, 256)
    draw, font = ImageDraw.Draw(written), ImageFont.load_default(size=size)
    for number, line in enumerate(LINES):
        wide = draw.textlength(line, font=font)
        left = 6 if corner % 2 == 0 else max(6, written.width - wide - 6)
        top = 6 + number * (size + 4) if corner < 2 else written.height - (3 - number) * (size + 4) - 6
        if box:
            draw.rectangle((left - 2, top - 1, left + wide + 2, top + size + 3), fill=(0, 0, 0))
        draw.text((left, top), line, fill=(shade,) * 3, font=font)
    return written


def enlarged(image: Image.Image, side: int) -> Image.Image:
    """The picture with at least so many pixels a side."""
    scale = max(1.0, side / min(image.size))
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def main() -> int:
    """Prints the line of JSON."""
    with tempfile.TemporaryDirectory(prefix="medgr2-bench-") as folder:
        found = pictures(Path(folder))
        synthetic = drawn(Path(folder) / "phantoms")
    own = {name: image for name, image in found.items() if any(word in name for word in WRITTEN)}
    clean = {name: image for name, image in found.items() if name not in own}
    large = {name: enlarged(image, 2048) for name, image in clean.items()}
    started = time.process_time()
    flagged = sum(map(burned_in_text.has_text, large.values()))
    each = (time.process_time() - started) / len(large)
    figures: dict[str, object] = {
        "pictures with writing of their own, found": f"{sum(map(burned_in_text.has_text, own.values()))} of {len(own)}",
        "clean pictures, flagged": f"{sum(map(burned_in_text.has_text, clean.values()))} of {len(clean)}",
        "clean large pictures, flagged": f"{flagged} of {len(large)}",
        "phantoms, flagged": f"{sum(map(burned_in_text.has_text, synthetic))} of {len(synthetic)}",
        "CPU seconds for a large picture": round(each, 2),
    }
    cases = [(clean, "drawn", SIZES, shade, box) for shade in SHADES for box in (True, False)]
    for images, what, sizes, shade, box in [*cases, (large, "drawn large", (14, 28, 56), SHADES[0], True)]:
        for size in sizes:
            tried = (write(image, size, shade, number % 4, box=box) for number, image in enumerate(images.values()))
            name = f"{what}, {size} px, grey level {shade}, {'on black' if box else 'on the picture'}, found"
            figures[name] = f"{sum(map(burned_in_text.has_text, tried))} of {len(images)}"
    for name, value in figures.items():
        print(f"{name}: {value}", file=sys.stderr)
    print(json.dumps({"name": "burned_in", "figures": figures, "n": len(found), "cores": os.cpu_count()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
