"""Stage prepare in process: what it publishes, and how it refuses bad input."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image

from medgr2_jobs.data import synthetic_images
from medgr2_jobs.runner.main import execute
from medgr2_jobs.store.artifact import ArtifactReader
from medgr2_jobs.store.images import ImageStore
from medgr2_jobs.store.rows.prepared import GradedRow, Item, PhantomRow, QuarantinedRecord
from medgr2_jobs.store.rows.prepared import Image as ImageRow
from tests.support.fixtures import prepare_parameters, prepared_workspace, run_stage, stage_request
from tests.support.prepare_workspace import PrepareWorkspace


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PrepareWorkspace:
    return PrepareWorkspace(tmp_path, monkeypatch)


def test_phantoms_end_to_end(tmp_path: Path) -> None:
    request, ref = prepared_workspace(tmp_path)
    prepared = ArtifactReader(tmp_path, ref)
    images = {row.image_sha256: row for row in prepared.rows(ImageRow)}
    items = prepared.rows(Item)
    truth = {row.image_sha256: row for row in prepared.rows(PhantomRow)}
    counters = prepared.manifest.counters

    assert len(images) == len(truth) == counters["images"] == 80
    assert {row.source for row in images.values()} == {"seed", "pool", "bench"}
    assert {row.split for row in images.values() if row.source == "pool"} == {"train"}
    assert not [item for item in items if item.source == "pool"]
    for item in items:
        assert images[item.image_sha256].split == item.split
        assert (item.benchmark == "bench") == (item.split == "test")
        gold = item.options[item.answer_index]
        assert getattr(truth[item.image_sha256], item.question_type) == gold
    assert len({item.item_id for item in items}) == len(items) == 200
    assert (counters["seed_items"], counters["validation_items"], counters["benchmark_items"]) == (128, 32, 40)

    by_id = {item.item_id: item for item in items}
    graded = prepared.rows(GradedRow)
    assert {row.split for row in graded} == {"train", "heldout"}
    for row in graded:
        split = "train" if row.split == "train" else "validation"
        assert by_id[row.item_id].split == split
        assert images[row.image_sha256].split == split
    assert prepared.rows(QuarantinedRecord) == []
    assert json.loads(prepared.file("splits.json").read_text())["images"] == {"test": 10, "train": 62, "validation": 8}
    for role in ("policy", "reward"):
        folder = prepared.folder_of(f"models/{role}")
        assert (folder / "model.safetensors").is_file()
    assert len({(prepared.folder_of(f"models/{r}") / "config.json").read_bytes() for r in ("policy", "reward")}) == 1
    store = ImageStore(tmp_path)
    for sha256 in images:
        assert store.load(sha256).size == (56, 56)
    assert request.input_hash in ref.path


def test_the_same_request_gives_the_same_digest(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    request, ref = prepared_workspace(tmp_path / "a")
    assert run_stage(tmp_path / "b", request).output_digest == ref.output_digest


def test_real_files_go_through(workspace: PrepareWorkspace) -> None:
    prepared = workspace.tables()
    assert len(prepared.rows(Item)) == 50
    assert not prepared.has("phantoms.parquet")
    seed = prepared.rows(Item)[0]
    assert seed.item_id == "seed/000000"
    workspace.data["sources"][0]["names"] = "Clear"
    seed = workspace.tables().rows(Item)[0]
    assert seed.item_id == f"seed/{workspace.records()[0]['question_id']}"


def test_test_fraction_becomes_a_benchmark(workspace: PrepareWorkspace) -> None:
    prepared = workspace.tables(data={"split": {"validationFraction": 0.2, "testFraction": 0.2}, "benchmarks": []})
    held = [item for item in prepared.rows(Item) if item.split == "test"]
    assert {item.benchmark for item in held} == {"seed"}
    assert len({item.image_sha256 for item in held}) == 4


def test_few_bad_records_are_set_aside(workspace: PrepareWorkspace) -> None:
    workspace.change(3, gt_answer="Unicorn")
    prepared = workspace.tables(data={"maxBadFraction": 0.1})
    (row,) = prepared.rows(QuarantinedRecord)
    assert row.source == "seed"
    assert row.record.startswith("questions.json[3]")
    assert row.field == "gt_answer"
    assert "'Unicorn' is not among the options" in row.reason
    assert prepared.manifest.counters["quarantined"] == 1
    assert len(prepared.rows(Item)) == 49


def test_as_many_bad_records_as_allowed_are_set_aside_in_benchmarks_too(workspace: PrepareWorkspace) -> None:
    right = workspace.records("bench")[2]["gt_answer"]
    for row in (1, 2):
        workspace.change(row, "bench", gt_answer="Unicorn")
    workspace.refused(65, "data.benchmarks[bench]: 2 of 10", data={"maxBadFraction": 0.1})
    workspace.change(2, "bench", gt_answer=right)
    prepared = workspace.tables(data={"maxBadFraction": 0.1})  # one of ten
    assert [row.source for row in prepared.rows(QuarantinedRecord)] == ["bench"]


def test_a_files_way_to_say_the_right_answer_is_written_down(workspace: PrepareWorkspace) -> None:
    records = workspace.records()
    for record in records:
        options = [record[f"option_{letter}"] for letter in "ABCD"]
        record["gt_answer"] = "ABCD"[options.index(record["gt_answer"])]
    (workspace.root / "seed" / "questions.json").write_text(json.dumps(records))
    prepared = workspace.tables()
    read_as = json.loads(prepared.file("splits.json").read_text())["answersReadAs"]
    assert read_as == {"seed": {"Letter": 40}, "bench": {"Text": 10}}


def test_the_options_of_a_source_are_spelled_alike_on_request(workspace: PrepareWorkspace) -> None:
    """What differs in spelling alone is set aside, for then the right answer would be there twice."""
    first = {f"option_{letter}": text for letter, text in zip("ABCD", ("Liver.", "CYST", "mass", "T2"), strict=True)}
    workspace.change(0, gt_answer="CYST", **first)
    workspace.change(1, gt_answer="cyst", **first | {"option_C": "cyst"})
    workspace.change(0, "bench", gt_answer="Uniform", option_A="Uniform", option_B="not uniform")
    workspace.data["sources"] = [{**workspace.data["sources"][0], "optionSpelling": "Uniform"}]
    prepared = workspace.tables(data={"maxBadFraction": 0.1})
    items = [item for item in prepared.rows(Item) if item.source == "seed"]
    assert len(items) == 39
    assert all(option == option.casefold() for item in items for option in item.options)
    assert any(item.options == ("liver", "cyst", "mass", "t2") and item.answer_index == 1 for item in items)
    (bad,) = prepared.rows(QuarantinedRecord)
    assert "the same but for their spelling" in bad.reason
    assert any("Uniform" in item.options for item in prepared.rows(Item) if item.split == "test")


def test_images_are_scaled_and_kept_from_others_as_the_spec_says(workspace: PrepareWorkspace) -> None:
    """An image of two sources may leave the cluster only where both allow it."""
    source = workspace.data["sources"][0]
    records = workspace.records()[:4]  # of two images
    (workspace.root / "seed" / "some.json").write_text(json.dumps(records))
    pool = {"name": "pool", "role": "Images", "uri": "seed/some.json", "allowExternal": False}
    workspace.data["sources"] = [{**source, "allowExternal": True}, {**source, **pool}]
    rows = workspace.tables(data={"maxPixels": 784}).rows(ImageRow)
    assert [row.allow_external for row in rows if row.split != "test"].count(False) == 2
    assert {row.width * row.height for row in rows} == {784}


def test_asked_to_stop_it_stops(workspace: PrepareWorkspace) -> None:
    stop = threading.Event()
    stop.set()
    asked = stage_request("prepare", 0, prepare_parameters(data=workspace.data))
    assert execute(asked, workspace.root, stop) == 85
    assert len(list(workspace.root.glob("images/*/*.png"))) <= 1, "it looks while it reads, not when all is read"


def test_missing_image(workspace: PrepareWorkspace) -> None:
    (workspace.root / "seed/images/000004.png").unlink()
    workspace.refused(
        65,
        "data.sources[seed]: 2 of 40 records",
        "questions.json[8]",
        "image_path",
        "file-",
        "image file is missing",
        "raise data.maxBadFraction",
    )
    workspace.data["sources"][0]["names"] = "Clear"
    workspace.refused(65, "000004.png: image file is missing")


def test_truncated_png(workspace: PrepareWorkspace) -> None:
    path = workspace.root / "bench/images/000001.png"
    path.write_bytes(path.read_bytes()[:1500])
    workspace.refused(65, "data.benchmarks[bench]: 2 of 10", "questions.json[2]", "image_path", "not a readable image")


def test_image_bomb(workspace: PrepareWorkspace) -> None:
    Image.new("1", (12_000, 11_000)).save(workspace.root / "seed/images/000000.png")
    workspace.refused(65, "questions.json[0]", "image_path", "claims 12000 x 11000 pixels")


def test_duplicate_ids(workspace: PrepareWorkspace) -> None:
    workspace.change(5, question_id=workspace.records()[2]["question_id"])
    workspace.refused(65, "questions.json[5]", "question_id", "the same as in questions.json[2]")


def test_gold_not_among_the_options(workspace: PrepareWorkspace) -> None:
    workspace.change(7, gt_answer="Unicorn")
    workspace.refused(65, "1 of 40", "questions.json[7]", "gt_answer", "'Unicorn' is not among the options")


def test_dots_in_an_image_path(workspace: PrepareWorkspace) -> None:
    workspace.change(0, image_path="../bench/images/000000.png")
    workspace.refused(65, "questions.json[0]", "image_path", "must not contain '..'")


def test_dots_in_the_uri(workspace: PrepareWorkspace) -> None:
    workspace.data["sources"][0]["uri"] = "seed/questions.json"
    request = stage_request("prepare", 0, prepare_parameters(data=workspace.data))
    request.parameters["data"]["sources"][0]["uri"] = "../outside.json"
    assert execute(request, workspace.root) == 78
    assert "must not contain '..'" in workspace.result_path.read_text()


def test_a_link_out_of_the_workspace(workspace: PrepareWorkspace) -> None:
    (workspace.root.parent / "outside").mkdir()
    (workspace.root / "link").symlink_to(workspace.root.parent / "outside")
    workspace.data["sources"][0]["uri"] = "link"
    workspace.refused(78, "data.sources[seed].uri", "leads out of the workspace")


def test_not_json(workspace: PrepareWorkspace) -> None:
    (workspace.root / "seed/questions.json").write_text('[{"question_id": "a"},\n  {"question_id" "b"}]')
    workspace.refused(65, "seed/questions.json: not JSON", "line 2, column 18")


def test_missing_file(workspace: PrepareWorkspace) -> None:
    workspace.data["sources"][0]["uri"] = "seeds/questions.json"
    workspace.refused(78, "data.sources[seed].uri", "seeds/questions.json")


def test_everything_bad_even_if_allowed(workspace: PrepareWorkspace) -> None:
    (workspace.root / "seed/questions.json").write_text(json.dumps([{"question_id": "a"}]))
    workspace.refused(65, "none of its 1 records can be used", "option_A", data={"maxBadFraction": 1})


def test_empty_list(workspace: PrepareWorkspace) -> None:
    (workspace.root / "seed/questions.json").write_text("[]")
    workspace.refused(65, "data.sources[seed]: holds no records")


def test_images_only(workspace: PrepareWorkspace) -> None:
    workspace.data["sources"][0]["role"] = "Images"
    workspace.refused(65, "none has questions and answers")


def copy_bench_images(workspace: PrepareWorkspace, count: int) -> None:
    for index in range(count):
        source = workspace.root / f"bench/images/{index:06d}.png"
        (workspace.root / f"seed/images/{index:06d}.png").write_bytes(source.read_bytes())


def test_leaked_images_are_dropped_and_counted(workspace: PrepareWorkspace) -> None:
    copy_bench_images(workspace, 2)
    prepared = workspace.tables()
    counters = prepared.manifest.counters
    assert counters["leaked_images"] == 2
    assert counters["leaked_share"] == pytest.approx(0.4)
    tested = {item.image_sha256 for item in prepared.rows(Item) if item.split == "test"}
    learnt = {item.image_sha256 for item in prepared.rows(Item) if item.split != "test"}
    assert (len(tested), len(learnt)) == (5, 18)
    assert not tested & learnt
    assert not tested & {row.image_sha256 for row in prepared.rows(GradedRow)}
    (leak,) = json.loads(prepared.file("splits.json").read_text())["leaks"]
    assert set(leak["images"]) <= tested
    splits = {row.image_sha256: row.split for row in prepared.rows(ImageRow)}
    assert {splits[sha256] for sha256 in leak["images"]} == {"test"}


def test_leaked_images_fail_the_stage(workspace: PrepareWorkspace) -> None:
    copy_bench_images(workspace, 2)
    workspace.data["benchmarks"][0]["onLeak"] = "Fail"
    workspace.refused(65, "benchmark 'bench'", "2 image(s)", "seed/file-", "onLeak: Drop")
    workspace.data["sources"][0]["names"] = "Clear"
    workspace.refused(65, "benchmark 'bench'", "2 image(s)", "seed/images/000000.png", "onLeak: Drop")


def test_leaks_of_image_pools_and_of_every_benchmark_are_dropped(workspace: PrepareWorkspace) -> None:
    synthetic_images.write(workspace.root / "second", dataset="second", seed=3, images=3, questions_per_image=1)
    workspace.data["sources"].append(
        {"name": "pool", "format": "OmniMedVQA", "role": "Images", "uri": "second/questions.json"}
    )
    workspace.data["benchmarks"].append({"name": "second", "format": "OmniMedVQA", "uri": "second/questions.json"})
    copy_bench_images(workspace, 1)
    prepared = workspace.tables()
    assert prepared.manifest.counters["leaked_images"] == 4
    rows = prepared.rows(ImageRow)
    assert {row.source for row in rows} == {"seed", "bench", "second"}, "the pool has nothing of its own"
    assert sum(row.split == "test" for row in rows) == 8
    assert all((row.source == "seed") == (row.split != "test") for row in rows)


def test_nothing_left_to_train_on(workspace: PrepareWorkspace) -> None:
    workspace.data["benchmarks"][0]["uri"] = "seed/questions.json"
    workspace.refused(65, "nothing is left to train on", "20 image(s) were dropped")


def test_a_models_folder_is_taken(workspace: PrepareWorkspace, tmp_path: Path) -> None:
    _, ref = prepared_workspace(tmp_path / "other")
    folder = ArtifactReader(tmp_path / "other", ref).folder_of("models/policy")
    mine = workspace.root / "mine"
    folder.rename(mine)
    (mine / "pickled.bin").write_bytes(b"x")
    (mine / "code.py").write_text("boom")
    (mine / "head.safetensors").write_bytes((mine / "model.safetensors").read_bytes())
    prepared = workspace.tables(policyBaseModel="mine", rewardBaseModel="mine", rewardCheckpoint="mine")
    names = {part.name for part in prepared.manifest.parts if part.name.startswith("models/")}
    assert "models/reward-checkpoint/head.safetensors" in names
    assert not [name for name in names if name.endswith((".bin", ".py"))]
    taken = prepared.folder_of("models/policy") / "model.safetensors"
    assert taken.stat().st_ino == (mine / "model.safetensors").stat().st_ino


def test_a_missing_model_is_found_before_the_data_is_read(workspace: PrepareWorkspace) -> None:
    workspace.refused(78, "policy.baseModel", "'models/deep/x' is not on the volume", policyBaseModel="models/deep/x")
    assert not (workspace.root / "images").exists()


def test_torch_is_not_imported_without_a_built_in_model(workspace: PrepareWorkspace, tmp_path: Path) -> None:
    _, ref = prepared_workspace(tmp_path / "other")
    ArtifactReader(tmp_path / "other", ref).folder_of("models/policy").rename(workspace.root / "mine")
    parameters = prepare_parameters(data=workspace.data, policyBaseModel="mine", rewardBaseModel="mine")
    request = stage_request("prepare", 0, parameters)
    code = (
        "import sys; from pathlib import Path; from medgr2_jobs.runner.main import execute;"
        "from medgr2_api.stage_contract import StageRequest;"
        "code = execute(StageRequest.model_validate_json(sys.argv[1]), Path(sys.argv[2]));"
        "sys.exit(code or ('torch' in sys.modules) * 99)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, request.model_dump_json(by_alias=True), str(workspace.root)], check=False
    )
    assert done.returncode == 0
