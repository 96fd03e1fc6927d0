"""Names of patients, wherever files, folders and records may hold one: none is published, shown or logged."""

from __future__ import annotations

import contextlib
import json
import os
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from medgr2_api import paths
from medgr2_jobs.data import whois
from medgr2_jobs.store.rows.prepared import Image as ImageRow
from medgr2_jobs.store.rows.prepared import Item, QuarantinedRecord
from tests.support.plugin_fixtures import install, plugin
from tests.support.prepare_workspace import PrepareWorkspace

NAME = "Mustermann"
FOLDER = f"{NAME}, Erika (1957-04-12)"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PrepareWorkspace:
    return PrepareWorkspace(tmp_path, monkeypatch)


def _picture(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    coarse = Image.frombytes("L", (6, 6), bytes(rng.randrange(256) for _ in range(36)))
    coarse.resize((64, 64), Image.Resampling.BICUBIC).save(path)
    return path


def _folder(root: Path, first: int) -> list[str]:
    """Good pictures, and one of each kind that cannot be used; relative to `root`."""
    names = []
    for number in range(4):
        names.append(f"{FOLDER}/{NAME}_{number}.png")
        _picture(root / names[-1], first + number)
    (root / FOLDER / f"{NAME}_torn.png").write_bytes((root / names[0]).read_bytes()[:200])
    (root / FOLDER / f"{NAME}_folder.png").mkdir()
    (root / FOLDER / f"{NAME}_out.png").symlink_to("/etc/hostname")
    (root / FOLDER / f"{NAME}_nowhere.png").symlink_to(root / FOLDER / f"{NAME}_gone")
    bad = [f"{FOLDER}/{NAME}_{kind}.png" for kind in ("torn", "folder", "out", "nowhere", "missing")]
    return [*names, *bad, f"../{NAME}.png", f"/{NAME}.png"]


def _vqa(root: Path) -> dict[str, Any]:
    pictures = _folder(root / "vqa", 0)
    question = {"question": "What is shown?", "options": ["Cyst", "Mass"], "answer": 0, "modality": "CT"}
    for part, extra in enumerate(({"id": NAME, "dataset": NAME, "patient": NAME}, {})):
        lines = [
            json.dumps({**question, "image": picture, **extra} | ({"id": f"{NAME}{number}"} if extra else {}))
            for number, picture in enumerate(pictures)
        ]
        lines += ["not JSON", json.dumps({**question, "image": pictures[0], "id": f"{NAME}0"})]
        (root / "vqa" / f"{FOLDER}_{part}.jsonl").write_text("\n".join(lines))
    return {"name": "vqa", "format": "VQAJsonl", "uri": "vqa"}


def _omnimedvqa(root: Path) -> dict[str, Any]:
    records = [
        {
            "question_id": f"{NAME}-{number}", "dataset": NAME, "image_path": picture, "patient_id": NAME,
            "question_type": "Diagnosis", "question": "What is it?", "gt_answer": "Cyst", "option_A": "Mass",
            "option_B": "Cyst", "modality_type": "CT",
        }
        for number, picture in enumerate(_folder(root / "omni", 10))
    ]  # fmt: skip
    (root / "omni" / f"{FOLDER}.json").write_text(json.dumps([*records, records[0], "no record"]))
    return {"name": "omni", "format": "OmniMedVQA", "uri": "omni"}


def _image_folder(root: Path, *, metadata: bool) -> dict[str, Any]:
    name = f"folder{int(metadata)}"
    pictures = _folder(root / name, 20 + 10 * metadata)
    if metadata:
        rows = [f'"{picture}",{NAME},{NAME}' for picture in pictures]
        (root / name / "metadata.csv").write_text("\n".join(["file_name,patient,dataset", *rows]))
    return {"name": name, "format": "ImageFolder", "uri": name, "modality": "CT"}


def _dicom(root: Path) -> dict[str, Any]:
    """Scrubbed files in a folder that is named after the patient."""
    folder = root / "dicom" / FOLDER
    folder.mkdir(parents=True)
    for number in range(3):
        dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "AccessionNumber"):
            if keyword in dataset:
                delattr(dataset, keyword)
        dataset.PixelData = bytes([*dataset.PixelData[number * 2 :], *dataset.PixelData[: number * 2]])
        dataset.save_as(folder / f"{NAME}_{number}.dcm")
    whole = (folder / f"{NAME}_0.dcm").read_bytes()
    (folder / f"{NAME}_torn.dcm").write_bytes(whole[: len(whole) // 2])
    (folder / f"{NAME}.txt").write_text("no DICOM")
    (folder / f"{NAME}_nowhere.dcm").symlink_to(folder / "gone")
    return {"name": "scans", "format": "DICOM", "uri": "dicom"}


def _mmmu(root: Path) -> dict[str, Any]:
    picture = _picture(root / "mmmu" / "x.png", 50).read_bytes()
    rows = [
        {
            "id": f"{NAME}_{number}", "question": "What?", "options": "['Cyst', 'Mass']", "answer": answer,
            "question_type": "multiple-choice", "img_type": "['CT']",
            "image_1": {"bytes": image, "path": f"{NAME}"},
        }
        for number, (answer, image) in enumerate([("A", picture), ("?", picture), ("B", b"none"), ("A", picture)])
    ]  # fmt: skip
    (root / "mmmu/Ward").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([*rows, rows[0]]), root / "mmmu/Ward" / f"validation-{NAME}.parquet")
    (root / "mmmu/x.png").unlink()
    return {"name": "mmmu", "format": "MMMU", "uri": "mmmu", "mmmu": {"subjects": ["Ward"], "split": "validation"}}


def _plugin(root: Path) -> dict[str, Any]:
    pictures = _folder(root / "plug", 60)
    lines = [f"{picture}\tWhich?\tred\tblue" for picture in pictures]
    (root / "plug" / "q.tsv").write_text("\n".join([*lines, f"{pictures[0]}\tWhich?\tred"]))
    return {"name": "plug", "format": "Plugin", "uri": "plug/q.tsv", "modality": "CT", "plugin": plugin("tsv")}


BUILDERS = {
    "VQAJsonl": _vqa,
    "OmniMedVQA": _omnimedvqa,
    "ImageFolder": lambda root: _image_folder(root, metadata=False),
    "ImageFolder with metadata": lambda root: _image_folder(root, metadata=True),
    "DICOM": _dicom,
    "MMMU": _mmmu,
    "Plugin": _plugin,
}


def _leaks(root: Path, output: str) -> list[str]:
    """Where the name stands in what is left, the data and what is private apart."""
    found = ["output"] if NAME.casefold() in output.casefold() else []
    for part in ("artifacts", "cycles", "images"):
        for path in (root / part).rglob("*"):
            if NAME in str(path.relative_to(root)):
                found.append(str(path))
            if path.is_file() and (part != "images"):
                data = path.read_bytes()
                tables = pq.read_table(path).to_pylist() if path.suffix == ".parquet" else ""
                if NAME.encode() in data or NAME in str(tables):
                    found.append(str(path))
    return found


@pytest.mark.parametrize("format", BUILDERS)
def test_a_patients_name_reaches_nothing(
    workspace: PrepareWorkspace, monkeypatch: pytest.MonkeyPatch, format: str, capfd: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch)
    source = BUILDERS[format](workspace.root)
    workspace.data["sources"].append(source)
    result, _ = workspace.run(data={"maxBadFraction": 0})  # it fails, and names what is bad
    assert result.exit_code == 65, result
    assert source["name"] in result.message
    assert NAME not in result.message
    tables = workspace.tables(data={"maxBadFraction": 1})
    assert not _leaks(workspace.root, "".join(capfd.readouterr()))
    bad = [row for row in tables.rows(QuarantinedRecord) if row.source == source["name"]]
    assert bad
    images = [row for row in tables.rows(ImageRow) if row.source == source["name"]]
    assert images
    assert all(row.source_path.startswith("file-") for row in images)
    assert all(row.item_id.split("/")[1].isdecimal() for row in tables.rows(Item))
    for row in images:  # and the owner can find each
        (found, *_) = whois.find(workspace.root, [row.source_path])
        assert NAME in found["name"]


def test_the_names_of_fetched_files_are_not_in_their_pins(
    workspace: PrepareWorkspace, capfd: pytest.CaptureFixture[str]
) -> None:
    source = _vqa(workspace.root)
    for path in (workspace.root / "vqa").rglob("*"):  # what a fetch would not copy
        if path.is_symlink() or (path.is_dir() and path.suffix):
            path.unlink() if path.is_symlink() else path.rmdir()
    elsewhere = workspace.root.parent / "elsewhere"
    (workspace.root / "vqa").rename(elsewhere)
    workspace.data["sources"].append(source | {"uri": f"file://{elsewhere}"})
    tables = workspace.tables(data={"maxBadFraction": 1})
    assert not _leaks(workspace.root, "".join(capfd.readouterr()))
    (pin,) = json.loads(tables.file("inputs.json").read_text())
    assert len(pin["files"]) == 7
    for file in pin["files"]:
        (found, *_) = whois.find(workspace.root, [file["path"]])
        assert NAME in found["name"]
    images = {row.source_path for row in tables.rows(ImageRow) if row.source == "vqa"}
    assert images <= {file["path"] for file in pin["files"]}
    clear = source | {"uri": f"file://{elsewhere}", "names": "Clear"}
    shown = workspace.tables(data={"maxBadFraction": 1, "sources": [clear]})
    assert NAME in shown.file("inputs.json").read_text()


def test_clear_names_are_the_specs_choice(workspace: PrepareWorkspace) -> None:
    workspace.data["sources"] = [_image_folder(workspace.root, metadata=False) | {"names": "Clear", "role": "Images"},
                                 *workspace.data["sources"]]  # fmt: skip
    tables = workspace.tables(data={"maxBadFraction": 1})
    clear = {row.source_path for row in tables.rows(ImageRow) if row.source == "folder0"}
    assert clear == {f"{FOLDER}/{NAME}_{number}.png" for number in range(4)}
    seeds = {row.source_path for row in tables.rows(ImageRow) if row.source == "seed"}
    assert all(path.startswith("file-") for path in seeds), "of one source, not of all"


def test_a_disk_that_fails_names_no_file(
    workspace: PrepareWorkspace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    workspace.data["sources"].append(_image_folder(workspace.root, metadata=False))
    look = os.stat

    def broken(path: Any, *rest: Any, **more: Any) -> os.stat_result:
        if f"{NAME}_2.png" in str(path):
            raise OSError(5, "Input/output error", str(path))
        return look(path, *rest, **more)

    monkeypatch.setattr(os, "stat", broken)
    result, _ = workspace.run(data={"maxBadFraction": 1})
    monkeypatch.undo()
    assert result.exit_code == 75, result
    assert "data.sources[folder0]: a file of it cannot be read: Input/output error" in result.message
    assert NAME not in result.message
    assert not _leaks(workspace.root, "".join(capfd.readouterr()))


def test_the_same_names_get_the_same_pseudonyms_in_the_next_run(workspace: PrepareWorkspace) -> None:
    workspace.data["sources"].append(_image_folder(workspace.root, metadata=True))
    first = {row.image_sha256: row for row in workspace.tables(data={"maxBadFraction": 1}).rows(ImageRow)}
    again = {row.image_sha256: row for row in workspace.tables(data={"maxBadFraction": 1}, seed=99).rows(ImageRow)}
    assert {k: (row.patient, row.source_path) for k, row in first.items()} == {
        k: (row.patient, row.source_path) for k, row in again.items()
    }
    assert any(row.patient for row in first.values())


def test_the_secret_is_in_no_artifact_and_no_manifest(workspace: PrepareWorkspace) -> None:
    workspace.tables()
    secret = (workspace.root / paths.PSEUDONYM_KEY).read_text().strip()
    for folder, _, files in os.walk(workspace.root):
        for name in files:
            path = Path(folder) / name
            if path != workspace.root / paths.PSEUDONYM_KEY:
                data = path.read_bytes()
                assert secret.encode() not in data
                with contextlib.suppress(ValueError):
                    assert bytes.fromhex(secret) not in data
