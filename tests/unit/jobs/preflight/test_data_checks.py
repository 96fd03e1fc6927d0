"""The doctor looks where the spec points, and tells which pictures training and tests share."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage
from tests.support.cycle_documents import changed

from medgr2_api.cycle import Cycle
from medgr2_api.presets import resolve
from medgr2_jobs.data.decoder import client as decoder
from medgr2_jobs.preflight import data_checks, source_survey
from medgr2_jobs.preflight.check_result import CheckResult, CheckStatus, PreflightContext
from medgr2_jobs.store import atomic

#: Those of the minimal cycle, in whose messages files have their names.
SOURCES: list[dict[str, Any]] = [
    {"name": "train", "format": "OmniMedVQA", "uri": "data/train", "images": "data/images", "names": "Clear"}
]
TESTS: list[dict[str, Any]] = [
    {"name": "test", "format": "OmniMedVQA", "uri": "data/test", "images": "data/images", "names": "Clear"}
]
TINY = "builtin://tiny-qwen2.5-vl"


def case(root: Path, **values: Any) -> PreflightContext:
    document = changed({f"spec.{path.replace('__', '.')}": value for path, value in values.items()})
    cycle = Cycle.model_validate(document)
    return PreflightContext(cycle, resolve(cycle.spec), root, questions=0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("data/train", "data/test", "data/images"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def _verdicts(findings: Any) -> dict[str, CheckStatus]:
    return {finding.where: finding.status for finding in findings}


def test_what_is_there_and_what_is_not(root: Path) -> None:
    found = case(root, data__benchmarks=[{"name": "test", "format": "OmniMedVQA", "uri": "data/tset"}])
    told = list(data_checks.data(found))
    assert _verdicts(told) == {
        "data.sources[train].uri": CheckStatus.OK,
        "data.sources[train].images": CheckStatus.OK,
        "data.benchmarks[test].uri": CheckStatus.FAILED,
    }
    assert "data/tset does not exist; copy it" in told[-1].message


def test_what_is_not_there_is_told_once(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Not by the readers again, nor as a seed without questions; so a folder of images, and a link that leads out."""
    (root / "data/out").symlink_to(tmp_path_factory.mktemp("elsewhere"))
    found = case(
        root,
        data__sources=[{"name": "train", "format": "OmniMedVQA", "uri": "data/trian"}],
        data__benchmarks=[
            {"name": "test", "format": "OmniMedVQA", "uri": "data/test", "images": "data/imgaes"},
            {"name": "linked", "format": "OmniMedVQA", "uri": "data/out"},
        ],
    )
    told = [*data_checks.data(found), *data_checks.records(found)]
    assert [check.where for check in told if check.status is CheckStatus.FAILED] == [
        "data.sources[train].uri", "data.benchmarks[test].images", "data.benchmarks[linked].uri",
    ]  # fmt: skip


def test_a_link_that_leads_out_is_refused(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (root / "data/train").rmdir()
    (root / "data/train").symlink_to(elsewhere)
    first, *_ = data_checks.data(case(root))
    assert first.status is CheckStatus.FAILED
    assert "leads out of the workspace" in first.message


def test_what_prepare_fetches_cannot_be_known(root: Path) -> None:
    found = case(
        root,
        data__sources=[{"name": "hub", "format": "MMMU", "uri": "hf://MMMU/MMMU"}],
        policy__baseModel="Qwen/Qwen2.5-VL-7B-Instruct",
        rewardModel={"baseModel": TINY, "checkpoint": "s3://bucket/r"},
    )
    assert _verdicts(data_checks.data(found))["data.sources[hub].uri"] is CheckStatus.SKIPPED
    assert _verdicts(data_checks.models(found)) == {
        "policy.baseModel": CheckStatus.SKIPPED,
        "rewardModel.baseModel": CheckStatus.OK,
        "rewardModel.checkpoint": CheckStatus.SKIPPED,
    }


def test_a_folder_of_the_workspace_goes_before_the_hub(root: Path) -> None:
    (root / "models/mine").mkdir(parents=True)
    named = {"policy__baseModel": "models/mine", "rewardModel__baseModel": "models/other/deep"}
    assert _verdicts(data_checks.models(case(root, **named))) == {
        "policy.baseModel": CheckStatus.OK,
        "rewardModel.baseModel": CheckStatus.FAILED,
    }


@pytest.mark.parametrize("name", ["models/mine", "checkpoints/step-10", "there/other"])
def test_a_folder_that_is_not_there_is_no_id_of_the_hub(root: Path, name: str) -> None:
    (root / "there").mkdir()
    (found, _) = data_checks.models(case(root, policy__baseModel=name, rewardModel__baseModel=TINY))
    assert found.status is CheckStatus.FAILED
    assert f"{root / name} does not exist" in found.message
    elsewhere = case(root, policy__baseModel="Qwen/Qwen2.5-VL-7B-Instruct", rewardModel__baseModel="hf://models/mine")
    assert [each.status for each in data_checks.models(elsewhere)] == [CheckStatus.SKIPPED] * 2


def _picture(path: Path, colour: int, side: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = bytes((colour + 7 * number) % 256 for number in range(side * side))
    Image.frombytes("L", (side, side), pixels).save(path)
    return path


def _questions(file: Path, images: list[str], **changes: Any) -> None:
    """An OmniMedVQA file with a question about each picture."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"question_id": f"{file.stem}-{number}", "question_type": "Diagnosis", "question": "What is shown?",
         "gt_answer": "cyst", "image_path": image, "option_A": "cyst", "option_B": "mass", "modality_type": "CT",
         **changes}
        for number, image in enumerate(images)
    ]  # fmt: skip
    file.write_text(json.dumps(rows))


@pytest.mark.parametrize(("on_leak", "verdict"), [("Drop", CheckStatus.WARNING), ("Fail", CheckStatus.FAILED)])
def test_pictures_that_training_and_a_benchmark_share(root: Path, on_leak: str, verdict: CheckStatus) -> None:
    benchmark = TESTS[0] | {"images": "tested", "onLeak": on_leak}
    for name, colour in (("a.png", 1), ("b.png", 2)):
        _picture(root / "data/images" / name, colour)
    _questions(root / "data/train/q.json", ["a.png", "b.png", "a.png"])
    _picture(root / "tested/deep/c.png", 3)
    _questions(root / "data/test/q.json", ["deep/c.png"])
    (alone,) = data_checks.overlap(case(root, data__sources=SOURCES, data__benchmarks=[benchmark]))
    assert alone.status is CheckStatus.OK
    assert "none of its 1 picture files is among the 2" in alone.message
    _picture(root / "tested/deep/d.png", 2)
    (named_by_no_record,) = data_checks.overlap(case(root, data__sources=SOURCES, data__benchmarks=[benchmark]))
    assert named_by_no_record.status is CheckStatus.OK
    _questions(root / "data/test/q.json", ["deep/c.png", "deep/d.png", "deep/d.png"])
    (shared,) = data_checks.overlap(case(root, data__sources=SOURCES, data__benchmarks=[benchmark]))
    assert shared.status is verdict
    assert "1 of its 2 picture files" in shared.message
    assert "tested/deep/d.png" in shared.message
    assert "data/images/b.png" in shared.message


def test_one_folder_of_images_for_training_and_tests_shares_nothing_by_itself(root: Path) -> None:
    for number in range(6):
        _picture(root / f"data/images/{number}.png", number)
    _questions(root / "data/train/q.json", ["0.png", "1.png", "2.png"])
    _questions(root / "data/test/q.json", ["3.png", "4.png"])
    (found,) = data_checks.overlap(case(root))
    assert found.status is CheckStatus.OK
    assert "none of its 2 picture files is among the 3 of the sources" in found.message
    _questions(root / "data/test/q.json", ["3.png", "2.png"])
    (found,) = data_checks.overlap(case(root, data__sources=SOURCES, data__benchmarks=TESTS))
    assert found.status is CheckStatus.WARNING
    assert "1 of its 2 picture files are in the sources too, such as" in found.message
    assert found.message.count("2.png") == 1, "it is one file"


@pytest.mark.parametrize("equal", [0, 7])
def test_each_file_is_read_at_most_once(root: Path, monkeypatch: pytest.MonkeyPatch, equal: int) -> None:
    """As many files of one size on both sides as one likes: reads grow with the files, not with the pairs."""
    training = [_picture(root / f"data/images/t{number}.bmp", number % 256, 8 + number // 256) for number in range(400)]
    tested = [_picture(root / f"tested/t{number}.bmp", 255 - number % 200, 8) for number in range(300)]
    tested += training[:equal]
    reads, stats = Counter[Path](), Counter[Path]()
    honest, stat = atomic.sha256_file, Path.stat
    with monkeypatch.context() as patched:
        patched.setattr(atomic, "sha256_file", lambda path: reads.update([path]) or honest(path))
        patched.setattr(Path, "stat", lambda path, **rest: stats.update([path]) or stat(path, **rest))
        found = data_checks.shared(training, tested)
    assert set(stats.values()) == set(reads.values()) == {1}
    assert set(reads) <= {*training[:256], *tested}, "files of a size that only one side has are not read"
    pixels = {path: path.read_bytes() for path in {*training, *tested}}
    assert set(found) == {path for path in tested if pixels[path] in {pixels[other] for other in training}}
    assert all(pixels[path] == pixels[other] for path, other in found.items())


def test_formats_without_picture_files_are_left_to_prepare(root: Path) -> None:
    benchmark = {"name": "test", "format": "MMMU", "uri": "data/test"}
    (found,) = data_checks.overlap(case(root, data__benchmarks=[benchmark]))
    assert found.status is CheckStatus.SKIPPED


def test_names_that_may_be_patients_are_not_shown(root: Path) -> None:
    _picture(root / "data/images/Jane_Doe/a.png", 1)
    _questions(root / "data/train/Jane_Doe.json", ["Jane_Doe/a.png", "Jane_Doe/b.png"])
    _questions(root / "data/test/Jane_Doe.json", ["Jane_Doe/a.png"])
    (shared,) = data_checks.overlap(case(root))
    told = [shared, *data_checks.records(case(root))]
    assert [found.status for found in told] == [CheckStatus.WARNING, CheckStatus.FAILED, CheckStatus.OK]
    assert not any("Jane" in found.message for found in told)
    assert all("`names: Clear` of the source shows them" in found.message for found in told[:2])


def _told(root: Path, **values: Any) -> dict[str, CheckResult]:
    values = {"data__sources": SOURCES, "data__benchmarks": TESTS} | values
    return {found.where: found for found in data_checks.records(case(root, **values))}


def test_usable_records_are_counted(root: Path) -> None:
    _picture(root / "data/images/a.png", 1)
    _questions(root / "data/train/q.json", ["a.png"] * 3)
    _questions(root / "data/test/q.json", ["a.png"])
    told = _told(root)
    assert {where: (found.status, found.message) for where, found in told.items()} == {
        "data.sources[train]": (CheckStatus.OK, "3 records can be used"),
        "data.benchmarks[test]": (CheckStatus.OK, "1 records can be used"),
    }


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", "holds no records"),
        ("{}", "must hold a JSON list"),
        ("[{", "not JSON"),
        ('[{"question_id": "x"}]', "none of 1 records can be used: q.json[0]"),
        ("pictures missing", "none of 2 records can be used: q.json[0] (question_id 'q-0'): image_path"),
        ("pictures broken", "not a readable image"),
    ],
)
def test_a_file_of_which_no_record_can_be_used_fails(root: Path, content: str, reason: str) -> None:
    _picture(root / "data/images/a.png", 1)
    _questions(root / "data/test/q.json", ["a.png"])
    file = root / "data/train/q.json"
    if content.startswith("pictures"):
        _questions(file, ["b.png", "c.png"])
        if content.endswith("broken"):
            for name in ("b.png", "c.png"):
                (root / "data/images" / name).write_bytes(b"no picture")
    else:
        file.write_text(content)
    found = _told(root)["data.sources[train]"]
    assert found.status is CheckStatus.FAILED
    assert reason in found.message


def test_bad_records_fail_where_prepare_would(root: Path) -> None:
    _picture(root / "data/images/a.png", 1)
    _questions(root / "data/train/q.json", ["a.png"] * 8 + ["none.png"] * 2)
    found = _told(root)["data.sources[train]"]
    assert found.status is CheckStatus.FAILED
    assert "2 of 10 records cannot be used: q.json[8]" in found.message
    assert "more than data.maxBadFraction (0.01)" in found.message
    found = _told(root, data__maxBadFraction=0.2)["data.sources[train]"]
    assert found.status is CheckStatus.OK
    assert "They are set aside" in found.message


def test_only_the_first_pictures_are_decoded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{number}.png" for number in range(3 * source_survey.DECODED)]
    for name in names:
        (root / "data/images" / name).write_bytes(_picture(root / "one.png", 1).read_bytes())
    _questions(root / "data/train/q.json", names)
    opened = Counter[Path]()
    honest = decoder.picture
    monkeypatch.setattr(decoder, "picture", lambda *given: opened.update([given[0]]) or honest(*given))
    assert _told(root)["data.sources[train]"].message == f"{len(names)} records can be used"
    assert opened.total() == source_survey.DECODED
    assert not (root / "images").exists(), "nothing is kept"


def test_of_pictures_inside_records_only_the_first_are_read(root: Path) -> None:
    folder = root / "data/folder"
    for number in range(source_survey.DECODED + 50):
        _dicom(folder / f"{number:04d}.dcm")
    dicom = {"name": "scans", "format": "DICOM", "uri": "data/folder"}
    seed = {"name": "train", "format": "OmniMedVQA", "uri": "data/train", "images": "data/images"}
    _questions(root / "data/train/q.json", [])
    found = _told(root, data__sources=[seed, dicom])["data.sources[scans]"]
    assert (found.status, found.message) == (CheckStatus.OK, f"the first {source_survey.DECODED} records can be used")


def _dicom(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID, made.SOPInstanceUID = SecondaryCaptureImageStorage, f"1.2.{path.stem.lstrip('0') or '0'}"
    made.Modality, made.Rows, made.Columns, made.SamplesPerPixel = "CT", 4, 4, 1
    made.PhotometricInterpretation, made.BitsAllocated, made.BitsStored, made.HighBit = "MONOCHROME2", 8, 8, 7
    made.PixelRepresentation, made.PixelData = 0, bytes(range(16))
    made.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize(
    ("sources", "failing"),
    [
        ([{"name": "a", "format": "ImageFolder", "uri": "data/images", "modality": "CT"}], True),
        ([{"name": "a", "format": "OmniMedVQA", "uri": "data/train", "images": "data/images", "role": "Images"}], True),
        ([{"name": "a", "format": "Phantom", "phantom": {"questionsPerImage": 0}}], True),
        ([{"name": "a", "format": "Phantom", "phantom": {}}], False),
        ([{"name": "a", "format": "OmniMedVQA", "uri": "data/train", "images": "data/images"}], False),
        ([{"name": "a", "format": "MMMU", "uri": "hf://MMMU/MMMU"}], False),  # nobody knows yet
    ],
)
def test_without_a_seed_there_is_nothing_to_start_from(
    root: Path, sources: list[dict[str, Any]], failing: bool
) -> None:
    _picture(root / "data/images/a.png", 1)
    _questions(root / "data/train/q.json", ["a.png"])
    found = _told(root, data__sources=sources, data__benchmarks=[]).get("data.sources")
    assert (found is not None) is failing
    if found is not None:
        assert found.status is CheckStatus.FAILED
        assert "none has role Seed and questions with answers" in found.message
