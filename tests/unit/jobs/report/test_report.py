"""The report of a cycle whose figures are all known."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pyarrow import parquet
from tests.support.rows import row_of

from medgr2_api.stage_contract import ArtifactRef
from medgr2_jobs.errors import ConfigError
from medgr2_jobs.report import markdown, tables
from medgr2_jobs.report.cycle_frame import CycleFrame, PredictionColumns
from medgr2_jobs.stages import report
from medgr2_jobs.store.rows import Split

Trial = tuple[Path, dict[str, ArtifactRef]]
Context = Callable[..., Any]


@pytest.fixture(scope="module")
def made(trial: Trial, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from medgr2_api.stage_contract import CycleRef, StageRequest
    from medgr2_api.stages.report import ReportParameters
    from medgr2_jobs.runner.context import StageContext

    root, inputs = trial
    parameters = ReportParameters(seed=1, cycle="trial", iteration=2, settings={"preset": "Tiny", "seed": 17})
    request = StageRequest(
        cycle=CycleRef(name="trial", uid="trial-uid"), iteration=2, stage="report", input_hash="f" * 64,
        parameters=parameters.dump(), inputs=inputs,
    )  # fmt: skip
    ctx = StageContext(request, parameters, root)
    ctx.writer.open()
    report.run(ctx)
    return ctx.writer.folder


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


def test_results_hold_all_evaluations_with_the_cycle_first(made: Path) -> None:
    rows = json.loads((made / "results.json").read_text())
    assert {row["iteration"] for row in rows} == {0, 1, 2}
    assert all(next(iter(row)) == "cycle" and row["cycle"] == "trial" for row in rows)


def test_the_headline_table(made: Path) -> None:
    rows = {row["checkpoint"]: row for row in read_csv(made / "tables/accuracy.csv") if row["split"] == "test"}
    assert list(rows) == ["base", "sft@1", "grpo@1", "sft@2", "grpo@2"]
    assert [row["accuracy"] for row in rows.values()] == ["0.25", "0.65", "0.658333", "0.841667", "0.879167"]
    for row in rows.values():
        assert (row["n"], row["blank"], row["shuffled"], row["options_only"]) == ("240", "0.25", "0.4", "0.2")
        assert (row["option_prior"], row["chance"]) == ("0.3", "0.25")
        assert float(row["low"]) < float(row["accuracy"]) < float(row["high"])
    assert rows["base"]["step"] == ""
    assert float(rows["sft@1"]["step"]) == pytest.approx(0.4, abs=1e-5)
    assert float(rows["sft@1"]["step_low"]) > 0
    assert float(rows["grpo@1"]["step_low"]) < 0 < float(rows["grpo@1"]["step_high"])


def test_the_filter_against_the_truth(made: Path, trial: Trial) -> None:
    rows = read_csv(made / "tables/filter.csv")
    assert [row["candidates"] for row in rows] == ["500", "500"]
    assert {row["precision_raw"] for row in rows} == {"0.6"}
    for row in rows:
        kept = int(row["kept"])
        right = round(float(row["precision_kept"]) * kept)
        assert right / 300 == pytest.approx(float(row["recall"]), abs=1e-5)
        assert row["reasons"] == f"below_threshold {500 - kept}"
        assert row["threshold"] == "2.5"


def test_the_page_says_what_the_tables_say(made: Path) -> None:
    page = (made / "report.md").read_text()
    assert "`base` cannot be told from guessing (25.0)" in page
    assert "`grpo@1` is +0.8 points from `sft@1`" in page
    assert "holds 0: no difference is shown." in page
    assert "lies above every control" in page
    assert "| 0.91 | 95.0 | 88.0 | yes |" in page
    assert "no, the one before stays" in page
    assert "0.62 | 0.75 | 70.0 | 2.0 | 10.0 | 80.0 | 20.0 |" in page
    for line in page.splitlines():
        if line.startswith("!["):
            assert (made / line.split("](")[1].rstrip(")")).is_file()


def test_what_was_set_aside_is_counted_by_reason(made: Path) -> None:
    rows = [(row["source"], row["reason"], row["records"]) for row in read_csv(made / "tables/quarantine.csv")]
    assert rows == [
        ("seed", "image_path: …: image file is missing", "1"),
        ("scans", "Rows: claims N samples", "2"),
        ("scans", "PixelData: is missing", "1"),
    ]
    page = (made / "report.md").read_text()
    assert "## Records that were set aside" in page
    assert "| scans | unusable | Rows: claims N samples | 2 | b" in page
    assert "b|c.dcm" not in page, "what a file is called is no markup"


def test_figures_are_pictures_without_date_or_version(made: Path) -> None:
    names = sorted(path.name for path in (made / "figures").glob("*.png"))
    assert names == ["accuracy.png", "funnel.png", "grpo.png", "modality-0.png", "scores-1.png", "scores-2.png"]
    for name in names:
        with Image.open(made / "figures" / name) as image:
            assert image.width > 500
            assert set(image.info) <= {"dpi"}


def test_the_same_inputs_give_the_same_bytes(trial: Trial, context: Context, made: Path) -> None:
    root, inputs = trial
    ctx = context(root, inputs)
    report.run(ctx)
    again = {path.relative_to(ctx.writer.folder): path.read_bytes() for path in ctx.writer.folder.rglob("*.*")}
    assert again == {path.relative_to(made): path.read_bytes() for path in made.rglob("*.*")}
    undigested = {part.name for part in ctx.writer.parts() if not part.digested}
    assert undigested == {part.name for part in ctx.writer.parts() if part.name.endswith(".png")}


def test_evaluations_alone_are_enough(trial: Trial, context: Context) -> None:
    root, inputs = trial
    ctx = context(root, {role: ref for role, ref in inputs.items() if role == "measure-0"})
    report.run(ctx)
    assert sorted(path.name for path in ctx.writer.folder.rglob("*.*")) == [
        "accuracy.csv", "accuracy.png", "modality-0.png", "parameters.csv", "report.md", "results.json",
    ]  # fmt: skip
    page = (ctx.writer.folder / "report.md").read_text()
    assert not {"## Filter", "## Reward model", "## GRPO"} & set(page.splitlines())


def test_no_evaluation_is_an_error(trial: Trial, context: Context) -> None:
    root, inputs = trial
    with pytest.raises(ConfigError, match="no evaluation"):
        report.run(context(root, {"prepare": inputs["prepare"]}))


def test_images_that_were_trained_on_are_counted(trial: Trial, context: Context) -> None:
    root, inputs = trial
    frame = CycleFrame(context(root, inputs), 2)
    asked = [
        row_of(PredictionColumns, split=Split.TEST, benchmark="b", item_id=str(number), image_sha256=image)
        for number, image in enumerate(["train0001", "pool0001", "x", "y"])
    ]
    kept = {decision.triplet_id for t in (1, 2) for decision in frame.decisions(t) if decision.keep}
    expected = 0.25 + 0.25 * ("t1-1" in kept or "t2-1" in kept)
    assert tables.seen_rows(frame, {0: asked})[0].share == expected
    assert tables.seen_rows(frame, {}) == []


def test_every_table_is_read_once(trial: Trial, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    root, inputs = trial
    opened: Counter[Path] = Counter()

    class CountingFile(parquet.ParquetFile):  # type: ignore[misc, name-defined]
        def __init__(self, path: Path, *arguments: Any, **options: Any) -> None:
            opened[path] += 1
            super().__init__(path, *arguments, **options)

    monkeypatch.setattr(parquet, "ParquetFile", CountingFile)
    report.run(context(root, inputs))
    read = sorted(path.stem for path in opened)
    per_iteration = ["candidates", "decisions", "scores", "truth"]
    assert read == sorted(["items", "quarantine", *["predictions"] * 3, *per_iteration * 2])
    assert set(opened.values()) == {1}


HEADLINE = tables.HeadlineRow(
    split=Split.TEST, benchmark="b", checkpoint="sft@1", n=100, accuracy=0.5, low=0.4, high=0.6, metrics={"macro": 0.5},
    greedy=0.5, parse_failures=0.0, blank=0.25, shuffled=0.45, options_only=None, option_prior=0.9, chance=0.25,
    step=None, step_low=None, step_high=None,
)  # fmt: skip


def notes(**changes: float | None) -> str:
    headline = [replace(HEADLINE, **changes)]  # type: ignore[arg-type]
    return "\n".join(markdown.reading_notes(tables.CycleTables("c", 1, {}, [], headline, [], [], [], [])))


def test_notes_name_the_controls_that_are_not_beaten() -> None:
    said = notes()
    assert "does not lie above shuffled image (45.0), option prior (90.0)" in said
    assert "it lies above blank image (25.0)" in said
    assert "guessing" not in said
    assert "cannot be told from guessing" in notes(low=0.2)
    assert "30.0 % of the answers" in notes(parse_failures=0.3)
    bare = notes(blank=None, shuffled=None, option_prior=None)
    assert "no control was measured" in bare


def test_torch_is_not_imported() -> None:
    program = "import medgr2_jobs.stages.report, medgr2_jobs.report.compare, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
