"""The report says with which parameters stages were made, and which of them changed while the cycle ran."""

from __future__ import annotations

from pathlib import Path

from tests.support.cycle_documents import spec_with
from tests.support.fake_artifacts import publish

from medgr2_api.presets import resolve
from medgr2_api.stages import stage_parameters
from medgr2_jobs.report import markdown
from medgr2_jobs.report.cycle_artifacts import CycleArtifacts
from medgr2_jobs.report.cycle_frame import CycleFrame
from medgr2_jobs.report.parameters import changed_on_the_way, parameter_rows
from medgr2_jobs.report.tables import CycleTables


def cycle_of(root: Path, *specs: dict[str, object]) -> CycleFrame:
    """A cycle whose iterations 1, 2, … were made with these specs."""
    for t, changes in enumerate(specs, 1):
        for stage in ("curate", "sft"):
            parameters = stage_parameters(resolve(spec_with(changes)), "trial", stage, t).dump()
            publish(root, stage, t, parameters=parameters, cycle="trial")
    artifacts = CycleArtifacts(root, "trial")
    return CycleFrame(artifacts, artifacts.last)


def page(frame: CycleFrame) -> str:
    rows = parameter_rows(frame)
    cycle = CycleTables("trial", 2, {"seed": spec_with({}).seed}, [], [], [], [], [], [], parameters=rows)
    return markdown.report(cycle, [])


def test_a_cycle_of_one_spec(tmp_path: Path) -> None:
    frame = cycle_of(tmp_path, {}, {})
    rows = {(row.stage, row.iteration, row.parameter): row.value for row in parameter_rows(frame)}
    assert rows["sft", 2, "policy.sft.numEpochs"] == f"{resolve(spec_with({})).policy.sft.num_epochs:g}"
    assert changed_on_the_way(list(parameter_rows(frame)), spec_with({}).seed) == []
    assert "tables/parameters.csv" in page(frame)
    assert "was edited" not in page(frame)


def test_an_edit_on_the_way_is_said(tmp_path: Path) -> None:
    review = {"iteration": 2, "sha256": "a" * 64}
    frame = cycle_of(tmp_path, {"policy.sft.numEpochs": 1}, {"policy.sft.numEpochs": 4, "reviews": [review]})
    text = page(frame)
    assert "**The spec was edited while the cycle ran**" in text
    assert "- `policy.sft.numEpochs`: 1 in sft@1, 4 in sft@2" in text
    assert f"- `reviews`: none in curate@1, {'a' * 64} in curate@2" in text


def test_another_seed_is_seen_behind_the_seeds_that_follow_from_it(tmp_path: Path) -> None:
    seed = spec_with({}).seed
    frame = cycle_of(tmp_path, {}, {"seed": seed + 1})
    assert f"- `seed`: other than {seed} in curate@2, sft@2" in page(frame)
