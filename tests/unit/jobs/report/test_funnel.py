"""The funnel: every candidate counts once, in its group, at every step it reached."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.support.fake_artifacts import publish
from tests.support.rows import row_of

from medgr2_api.stage_contract import ArtifactRef
from medgr2_jobs.report import figures, funnel, markdown
from medgr2_jobs.report.cycle_frame import CycleFrame
from medgr2_jobs.stages import report
from medgr2_jobs.store.rows import TableRow
from medgr2_jobs.store.rows.candidates import Candidate, CandidateOutcome, Decision, Score

from .conftest import publish_cycle

PARADIGMS, MODALITIES, TYPES = ("Direct", "StepByStep"), ("CT", "MRI", ""), ("Diagnosis", "Anatomy", "Grading")


def candidate(number: int, outcome: CandidateOutcome) -> Candidate:
    return row_of(
        Candidate,
        triplet_id=f"t{number}",
        iteration=1,
        image_sha256="i",
        modality=MODALITIES[number % 3],
        question_type=TYPES[number // 3 % 3],
        paradigm=PARADIGMS[number % 2],
        outcome=outcome,
    )


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, ArtifactRef]:
    """180 candidates: of ten, one is not parsed, two are not scored, three are not kept, four are."""
    refs = publish_cycle(tmp_path)
    numbers = range(180)
    rows: dict[str, tuple[type[TableRow], list[Any]]] = {
        "generate": (
            Candidate,
            [candidate(n, CandidateOutcome.OK if n % 10 else CandidateOutcome.SCHEMA) for n in numbers],
        ),
        "score": (Score, [Score(f"t{n}", 5.0) for n in numbers if n % 10 > 2]),
        "curate": (
            Decision, [Decision(f"t{n}", n % 10 > 5, () if n % 10 > 5 else ("x",), None) for n in numbers]
        ),
    }  # fmt: skip
    for stage, (kind, table) in rows.items():
        refs[f"{stage}-1"] = publish(tmp_path, stage, 1, tables={kind: table})
    return refs


def test_every_candidate_counts_once_at_every_step(
    tmp_path: Path, inputs: dict[str, ArtifactRef], context: Callable[..., Any]
) -> None:
    rows = funnel.rows(CycleFrame(context(tmp_path, inputs), 1))
    assert len(rows) == 18
    assert funnel.totals(rows) == {"generated": 180, "parsed": 162, "scored": 126, "kept": 72}
    groups = {(dimension, name): counts for dimension, name, counts in funnel.marginals(rows)}
    assert {name for dimension, name in groups if dimension == "modality"} == {"CT", "MRI", "unknown"}
    for dimension in funnel.DIMENSIONS:
        for step in funnel.STEPS:
            counted = sum(counts[step] for (other, _), counts in groups.items() if other == dimension)
            assert counted == funnel.totals(rows)[step]
    assert groups["paradigm", "Direct"]["generated"] == 90
    assert groups["paradigm", "Direct"]["parsed"] == 72, "all that are not parsed have even numbers"


def test_the_report_has_table_figure_files_and_counters(
    tmp_path: Path, inputs: dict[str, ArtifactRef], context: Callable[..., Any]
) -> None:
    ctx = context(tmp_path, inputs)
    outcome = report.run(ctx)
    folder = ctx.writer.folder
    assert {step: outcome.counters[step] for step in funnel.STEPS} == {
        "generated": 180 + 500, "parsed": 162 + 500, "scored": 126 + 500, "kept": 72 + _kept(ctx, 2),
    }  # fmt: skip
    rows = json.loads((folder / "funnel.json").read_text())
    with (folder / "tables/funnel.csv").open() as stream:
        assert [{**row, **{key: str(row[key]) for key in ("iteration", *funnel.STEPS)}} for row in rows] == list(
            csv.DictReader(stream)
        )
    page = (folder / "report.md").read_text()
    assert "## Funnel" in page
    whole = outcome.counters
    assert f"| all |  | {whole['generated']} | {whole['parsed']} | {whole['scored']} | {whole['kept']} |" in page
    assert "| question type | finding | 500 | 500 | 500 |" in page
    with Image.open(folder / "figures/funnel.png") as image:
        assert image.width > 500


def _kept(ctx: Any, iteration: int) -> int:
    return sum(row.keep for row in ctx.input(f"curate-{iteration}").rows(Decision))


def test_without_generation_there_is_no_funnel(
    tmp_path: Path, inputs: dict[str, ArtifactRef], context: Callable[..., Any]
) -> None:
    left = {role: ref for role, ref in inputs.items() if not role.startswith("generate")}
    ctx = context(tmp_path, left)
    report.run(ctx)
    assert not (ctx.writer.folder / "funnel.json").exists()
    assert "## Funnel" not in (ctx.writer.folder / "report.md").read_text()


def test_many_groups_are_summed_up() -> None:
    rows = [funnel.FunnelRow(1, "Direct", f"m{n:02d}", "x", 50 - n, 40 - n, 30, 10) for n in range(30)]
    found = funnel.marginals(rows)
    assert {dimension for dimension, _, _ in found} == {"modality"}
    assert [name for _, name, _ in found] == [*(f"m{n:02d}" for n in range(11)), funnel.OTHERS]
    assert sum(counts["generated"] for _, _, counts in found) == sum(row.generated for row in rows)
    assert "m10" in markdown._funnel(rows)[-1]


def test_a_group_without_candidates_or_scores_is_drawn(tmp_path: Path) -> None:
    none = dict.fromkeys(funnel.STEPS, 0)
    unscored = {"generated": 10, "parsed": 8, "scored": 0, "kept": 8}
    figures.funnel([("modality", "CT", none), ("modality", "a name | of more than thirty letters", unscored)], unscored,
                   tmp_path / "f.png")  # fmt: skip
    assert (tmp_path / "f.png").stat().st_size > 1000
