"""Fuzzed: records of every reader, pictures and DICOM."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.support.fuzz_target import Case, Target
from tests.support.mutations import damaged_bytes, damaged_json, damaged_text, json_text


def picture(side: int = 24, seed: int = 0) -> Image.Image:
    """A small picture of noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side + 8, 3), np.uint8))


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _reader(folder: Path, uri: str, **fields: Any) -> Callable[[], str]:
    """Reads a source to its end: how many records were good and bad, or that it was refused."""
    from medgr2_jobs.data import format_registry
    from medgr2_jobs.data.record import BadRecord
    from medgr2_jobs.errors import StageError
    from tests.unit.jobs.data.test_omnimedvqa import place

    def read() -> str:
        where = place(folder, uri, **fields)
        try:
            records = list(format_registry.reader(where.source, "data.sources[s]")(where))
        except StageError as error:
            return type(error).__name__
        bad = [record for record in records if isinstance(record, BadRecord)]
        for record in bad:
            str(record).encode()
        return "bad" if len(bad) == len(records) else "some bad" if bad else "good"

    return read


def _questions(number: int) -> dict[str, Any]:
    return {
        "id": f"q{number}",
        "image": f"{number % 2}.png",
        "question": "What does the image show?",
        "options": ["Cyst", "Mass", "No mass", "Cyst of 3 cm"],
        "answer": "Mass",
        "modality": "CT",
        "patient": f"p{number}",
        "rationale": "It is solid.",
        "question_type": "Diagnosis",
    }


def _pictures_beside(folder: Path) -> None:
    for number in range(2):
        picture(seed=number).save(folder / f"{number}.png")


def _vqajsonl(folder: Path) -> Case:
    _pictures_beside(folder)
    lines = [json_text(_questions(number)) for number in range(3)]
    read = _reader(folder, "q.jsonl", format="VQAJsonl")

    def case(rng: random.Random) -> str:
        damaged = [
            damaged_json(rng, _questions(number)) if rng.random() < 0.6 else line.encode()
            for number, line in enumerate(lines)
        ]
        (folder / "q.jsonl").write_bytes(b"\n".join(damaged))
        return read()

    return case


def _omnimedvqa(folder: Path) -> Case:
    _pictures_beside(folder)
    records = [
        {
            "dataset": "demo",
            "question_id": f"q{number}",
            "question_type": "Disease Diagnosis",
            "question": "What is shown?",
            "gt_answer": "Cyst",
            "image_path": f"{number % 2}.png",
            **{f"option_{letter}": text for letter, text in zip("ABCD", ("Mass", "Cyst", "3", "B"), strict=True)},
            "modality_type": "CT",
        }
        for number in range(3)
    ]
    read = _reader(folder, "q.json", format="OmniMedVQA")

    def case(rng: random.Random) -> str:
        (folder / "q.json").write_bytes(damaged_json(rng, records))
        return read()

    return case


def _mmmu(folder: Path) -> Case:
    subject = "Clinical_Medicine"
    path = folder / "mmmu" / subject / "validation-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    row = {
        "id": f"validation_{subject}_0",
        "question": "What does <image 1> show?",
        "options": "['Cyst', \"Crohn's disease\", 'Mass']",
        "explanation": "",
        **{f"image_{index}": None for index in range(2, 8)},
        "image_1": {"bytes": _encoded(picture(), "PNG"), "path": "x.png"},
        "img_type": "['Pathological Images']",
        "answer": "B",
        "topic_difficulty": "Easy",
        "question_type": "multiple-choice",
        "subfield": "Clinical Pathology",
    }
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({name: image if name.startswith("image_") else pa.string() for name in row})
    read = _reader(folder, "mmmu", format="MMMU", mmmu={"subjects": [subject]})

    def case(rng: random.Random) -> str:
        if rng.random() < 0.5:
            rows = [{**row, "id": f"validation_{subject}_{number}"} for number in range(2)]
            name = rng.choice(("question", "options", "answer", "question_type", "img_type", "id"))
            rows[0][name] = damaged_text(rng, str(row[name])).encode("utf-8", "ignore").decode()
            rows[1]["image_1"] = {"bytes": damaged_bytes(rng, row["image_1"]["bytes"]), "path": "x.png"}
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
        else:
            whole = io.BytesIO()
            pq.write_table(pa.Table.from_pylist([row], schema=schema), whole)
            path.write_bytes(damaged_bytes(rng, whole.getvalue()))
        return read()

    return case


def _imagefolder(folder: Path) -> Case:
    scans = folder / "scans"
    scans.mkdir()
    _pictures_beside(scans)
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerows(
        [("file_name", "modality", "patient", "dataset"), ("0.png", "CT", "p0", "d"), ("1.png", "CT", "p1", "d")]
    )
    read = _reader(folder, "scans", format="ImageFolder", modality="CT")

    def case(rng: random.Random) -> str:
        damaged = damaged_text(rng, buffer.getvalue()).encode("utf-8", "surrogatepass")
        (scans / "metadata.csv").write_bytes(damaged)
        return read()

    return case


# -- pictures ----------------------------------------------------------------------------------------------------------


def encoded_pictures() -> dict[str, bytes]:
    """One of each kind of picture file that is read, by suffix and what is special about it."""
    image = picture()
    grey16 = Image.fromarray(np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) * 80)
    return {
        "plain.png": _encoded(image, "PNG"),
        "palette.png": _encoded(image.quantize(16), "PNG", transparency=0),
        "alpha.png": _encoded(image.convert("RGBA"), "PNG"),
        "grey16.png": _encoded(grey16, "PNG"),
        "one.png": _encoded(image.convert("1"), "PNG"),
        "plain.jpg": _encoded(image, "JPEG"),
        "progressive.jpg": _encoded(image, "JPEG", progressive=True, exif=Image.Exif().tobytes()),
        "cmyk.jpg": _encoded(image.convert("CMYK"), "JPEG"),
        "plain.tif": _encoded(image, "TIFF"),
        "lzw.tif": _encoded(image, "TIFF", compression="tiff_lzw"),
        "float.tif": _encoded(Image.fromarray(np.linspace(0, 1, 24 * 32, dtype=np.float32).reshape(24, 32)), "TIFF"),
        "plain.bmp": _encoded(image, "BMP"),
        "plain.gif": _encoded(image, "GIF"),
        "frames.gif": _encoded(image, "GIF", save_all=True, append_images=[picture(seed=2), picture(seed=3)]),
        "plain.webp": _encoded(image, "WEBP", lossless=True),
    }


def _pictures(folder: Path) -> Case:
    scans = folder / "scans"
    scans.mkdir()
    encoded = encoded_pictures()
    read = _reader(folder, "scans", format="ImageFolder", modality="CT")

    def case(rng: random.Random) -> str:
        name = rng.choice(list(encoded))
        for old in scans.iterdir():
            old.unlink()
        (scans / f"x.{name.rpartition('.')[2]}").write_bytes(damaged_bytes(rng, encoded[name]))
        return read()

    return case


def dicom_files() -> list[bytes]:
    """Files of up to 64 KiB that come with pydicom, of every transfer syntax among them, and one of our own."""
    import pydicom

    shipped = Path(pydicom.__file__).parent / "data" / "test_files"
    return [path.read_bytes() for path in sorted(shipped.glob("*.dcm")) if path.stat().st_size <= 2**16]


def _dicom(folder: Path) -> Case:
    (folder / "scans").mkdir()
    files = dicom_files()
    read = _reader(folder, "scans", format="DICOM", modality="CT", dicom={"burnedInText": "TrustFlag"})

    def case(rng: random.Random) -> str:
        (folder / "scans" / "x.dcm").write_bytes(damaged_bytes(rng, rng.choice(files)))
        return read()

    return case


TARGETS = (
    Target("VQAJsonl", 0.1, _vqajsonl),
    Target("OmniMedVQA", 0.1, _omnimedvqa),
    Target("MMMU", 0.02, _mmmu),
    Target("ImageFolder", 0.05, _imagefolder),
    Target("pictures", 0.16, _pictures),
    Target("DICOM", 0.16, _dicom),
)
