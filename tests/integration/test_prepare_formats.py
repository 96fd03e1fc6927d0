"""Stage prepare on every format: splits by patient and source, near leaks, pins, and memory that holds a sample."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medgr2_jobs.stages import prepare
from medgr2_jobs.store.artifact import ArtifactReader
from medgr2_jobs.store.rows.prepared import GradedRow, Item, QuarantinedRecord, SetAside
from medgr2_jobs.store.rows.prepared import Image as ImageRow
from tests.support.fixtures import prepared_workspace
from tests.support.prepare_workspace import PrepareWorkspace
from tests.unit.jobs.data.test_dicom import made


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PrepareWorkspace:
    return PrepareWorkspace(tmp_path, monkeypatch)


def _picture(path: Path, seed: int, *, size: int = 64) -> None:
    """A picture of its own: coarse noise, so that perceptual hashes differ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    coarse = Image.frombytes("L", (6, 6), bytes(rng.randrange(256) for _ in range(36)))
    coarse.resize((size, size), Image.Resampling.BICUBIC).save(path)


def _lines(
    workspace: PrepareWorkspace, name: str, patients: dict[int, str] | None = None, first: int = 0, count: int = 12
) -> None:
    """A VQAJsonl file with a question about each of `count` pictures."""
    lines = []
    for number in range(first, first + count):
        _picture(workspace.root / name / f"{number}.png", number)
        question = {"image": f"{number}.png", "question": f"What is in {number}?", "options": ["Cyst", "Mass"]}
        extra = {"answer": number % 2, "modality": "CT", "dataset": f"d{number % 3}"}
        lines.append({**question, **extra, **({"patient": patients[number]} if patients else {})})
    (workspace.root / name / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))


def _jsonl(name: str, **changes: Any) -> dict[str, Any]:
    return {"name": name, "format": "VQAJsonl", "uri": f"{name}/q.jsonl", **changes}


def test_formats_go_through_one_door(workspace: PrepareWorkspace) -> None:
    _lines(workspace, "lab")
    for number in range(4):
        _picture(workspace.root / "folder" / f"x{number}.jpg", 100 + number)
    folder = {"name": "pool", "format": "ImageFolder", "uri": "folder", "modality": "X-Ray", "role": "Images"}
    workspace.data["sources"] = [_jsonl("lab", names="Clear"), folder | {"allowExternal": False}]
    prepared = workspace.tables()
    rows = prepared.rows(ImageRow)
    assert {row.source for row in rows} == {"lab", "pool", "bench"}
    assert {(row.modality, row.allow_external) for row in rows if row.source == "pool"} == {("X-Ray", False)}
    assert {row.source for row in prepared.rows(Item)} == {"lab", "bench"}
    assert all(len(row.phash) == 16 for row in rows)
    assert {row.dataset for row in rows if row.source == "lab"} == {"d0", "d1", "d2"}
    assert all(row.source == "lab" and row.seed is not None for row in prepared.rows(GradedRow))


def test_phantoms_have_no_perceptual_hash(tmp_path: Path) -> None:
    _, ref = prepared_workspace(tmp_path)
    assert {row.phash for row in ArtifactReader(tmp_path, ref).rows(ImageRow)} == {""}


def test_all_images_of_a_patient_stay_together(workspace: PrepareWorkspace) -> None:
    _lines(workspace, "lab", patients={number: f"patient {number // 3}" for number in range(12)})
    workspace.data |= {
        "sources": [_jsonl("lab")],
        "split": {"by": "Patient", "validationFraction": 0.3},
        "benchmarks": [],
    }
    prepared = workspace.tables()
    sides: dict[str, set[str]] = {}
    for row in prepared.rows(ImageRow):
        sides.setdefault(row.patient, set()).add(row.split)
    assert len(sides) == 4
    assert all(len(found) == 1 for found in sides.values())
    assert {side for found in sides.values() for side in found} == {"train", "validation"}
    assert json.loads(prepared.file("splits.json").read_text())["by"] == "Patient"
    assert not any("patient " in str(row) for row in prepared.rows(ImageRow))


def test_a_record_without_a_patient_is_refused_where_patients_decide(workspace: PrepareWorkspace) -> None:
    _lines(workspace, "lab")
    split = {"by": "Patient", "validationFraction": 0.3}
    workspace.refused(
        65, "data.sources[lab]: '000000' names no patient", data={"sources": [_jsonl("lab")], "split": split}
    )


def test_all_images_of_a_dataset_stay_together(workspace: PrepareWorkspace) -> None:
    _lines(workspace, "lab")
    data = {"sources": [_jsonl("lab")], "split": {"by": "Source", "validationFraction": 0.3}, "benchmarks": []}
    sides: dict[str, set[str]] = {}
    for row in workspace.tables(data=data).rows(ImageRow):
        sides.setdefault(row.dataset, set()).add(row.split)
    assert len(sides) == 3
    assert all(len(found) == 1 for found in sides.values())


def test_an_image_that_looks_like_a_benchmarks_is_a_leak(workspace: PrepareWorkspace) -> None:
    _lines(workspace, "lab")
    _lines(workspace, "exam", first=50)
    with Image.open(workspace.root / "exam/50.png") as shown:
        shown.resize((80, 80)).save(workspace.root / "lab/3.png")  # other bytes, the same picture
    data = {"sources": [_jsonl("lab")], "benchmarks": [_jsonl("exam")]}
    prepared = workspace.tables(data=data)
    assert prepared.manifest.counters["near_leaked_images"] == prepared.manifest.counters["leaked_images"] == 1
    assert prepared.manifest.counters["leaked_share"] == 0, "none of the benchmark's own images would be trained on"
    assert len([item for item in prepared.rows(Item) if item.source == "lab"]) == 11
    (leak,) = json.loads(prepared.file("splits.json").read_text())["leaks"]
    assert leak["near"] == leak["images"] != []
    assert not {row.image_sha256 for row in prepared.rows(ImageRow)} & set(leak["near"])
    data |= {"sources": [_jsonl("lab", names="Clear")], "benchmarks": [_jsonl("exam", onLeak="Fail")]}
    workspace.refused(65, "benchmark 'exam'", "lab/3.png", data=data)


def test_what_was_fetched_is_published_with_its_pin(workspace: PrepareWorkspace) -> None:
    _lines(workspace, "lab")
    (workspace.root / "lab").rename(workspace.root.parent / "elsewhere")
    source = {**_jsonl("lab"), "uri": f"file://{workspace.root.parent}/elsewhere/q.jsonl"}
    source["images"] = f"file://{workspace.root.parent}/elsewhere"
    prepared = workspace.tables(data={"sources": [source]})
    pins = json.loads(prepared.file("inputs.json").read_text())
    assert [pin["uri"] for pin in pins] == sorted([source["uri"], source["images"]])
    assert all(len(pin["sha256"]) == 64 for pin in pins)
    assert len(prepared.rows(Item)) == 22


def test_memory_holds_a_sample_of_the_items_only(monkeypatch: pytest.MonkeyPatch, workspace: PrepareWorkspace) -> None:
    """Other images and rationales come from a bounded pool; every item still gets its grades."""
    whole = {row.item_id for row in workspace.tables().rows(GradedRow)}
    monkeypatch.setattr(prepare, "POOL", 5)
    rows = workspace.tables(seed=5).rows(GradedRow)
    assert {row.item_id for row in rows} == whole
    shown = {row.image_sha256 for row in rows if row.grade == "imageMismatch" and row.split == "train"}
    assert 1 <= len(shown) <= 5


def test_a_mixed_export_goes_through_and_says_what_it_left_out(workspace: PrepareWorkspace) -> None:
    """Reports, segmentations and annotated pictures are no damage: one damaged file of eleven is within the limit."""
    folder = workspace.root / "scans"
    folder.mkdir()
    pixels = np.arange(256, dtype=np.int16).reshape(16, 16)
    for number in range(10):
        made(pixels + number * np.arange(16)).save_as(folder / f"{number}.dcm", enforce_file_format=True)
    for number in range(20):
        report = made(pixels, Modality="SR")
        del report.PixelData
        report.save_as(folder / f"report-{number}.dcm", enforce_file_format=True)
    made(pixels, BurnedInAnnotation="YES").save_as(folder / "annotated.dcm", enforce_file_format=True)
    made(pixels * 0 + 7).save_as(folder / "constant.dcm", enforce_file_format=True)
    scans = {"name": "scans", "format": "DICOM", "uri": "scans", "allowExternal": False}
    sources = {"sources": [*workspace.data["sources"], scans]}
    workspace.refused(65, "data.sources[scans]: 1 of 11 records cannot be used", "20 hold no picture", data=sources)
    prepared = workspace.tables(data={**sources, "maxBadFraction": 0.1})
    figures = prepared.manifest.counters
    assert (figures["quarantined"], figures["no_picture"], figures["withheld"]) == (1, 20, 1)
    (bad,) = [row for row in prepared.rows(QuarantinedRecord) if row.kind is SetAside.UNUSABLE]
    assert bad.reason == "has one colour only, and so shows nothing"


def test_a_token_of_the_models_tokenizer_is_no_text(workspace: PrepareWorkspace, tmp_path: Path) -> None:
    _, ref = prepared_workspace(tmp_path / "other")
    mine = workspace.root / "mine"
    ArtifactReader(tmp_path / "other", ref).folder_of("models/policy").rename(mine)
    tokenizer = json.loads((mine / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({"id": 9999, "content": "[IMG]", "special": True})
    (mine / "tokenizer.json").write_text(json.dumps(tokenizer))
    workspace.change(3, question="What does [IMG] show?")
    workspace.change(4, question="What does [img] show?")
    models = {"policyBaseModel": "mine", "rewardBaseModel": "mine"}
    (bad,) = workspace.tables(data={"maxBadFraction": 0.1}, **models).rows(QuarantinedRecord)
    assert (bad.record.partition(" ")[0], bad.field) == ("questions.json[3]", "question")
    assert "has '[IMG]' in it" in bad.reason
