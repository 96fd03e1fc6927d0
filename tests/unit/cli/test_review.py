"""`medgr2 review` in a workspace on this computer, as a person runs it; and how the reader may write."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.curate_fixtures import candidate
from tests.support.cycle_specs import make_spec
from tests.support.fake_artifacts import publish
from typer.testing import CliRunner

from medgr2_api.cycle import Cycle, CycleSpec, Metadata
from medgr2_api.presets import resolve
from medgr2_api.stages import stage_parameters
from medgr2_jobs.store.rows import Candidate, Decision
from medgr2_operator.cli.app import app
from medgr2_operator.cli.cluster import cluster
from medgr2_operator.render.render_context import RenderSettings
from medgr2_operator.render.volume_reader_pod import reader_pod

runner = CliRunner(env={"COLUMNS": "200", "KUBECONFIG": "/nowhere"})


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    from PIL import Image

    from medgr2_jobs.store.images import ImageStore

    root = tmp_path / "workspace"
    root.mkdir()
    image = ImageStore(root).add(Image.new("RGB", (32, 32)), 10_000).sha256
    candidates = [candidate(name, image, "What?", options=("a", "b"), answer_index=1) for name in ("t0", "t1")]
    publish(root, "generate", 1, tables={Candidate: candidates}, cycle="loop")
    decisions = [Decision(row.triplet_id, True, (), None) for row in candidates]
    parameters = {"seed": 1, "curation": {"selection": {"strategy": "All"}}, "answerFormat": "Letter"}
    publish(root, "curate", 1, tables={Decision: decisions}, parameters=parameters, cycle="loop")
    return root


def invoke(*arguments: object) -> tuple[int, str]:
    done = runner.invoke(app, ["review", *map(str, arguments)])
    return done.exit_code, done.output


def test_both_programs_have_it() -> None:
    for program in (app, cluster):
        assert "  review " in runner.invoke(program, ["--help"]).output
        shown = runner.invoke(program, ["review", "--help"]).output
        assert "export" in shown
        assert "import" in shown


def test_out_and_back_and_what_to_do_next(workspace: Path, tmp_path: Path) -> None:
    code, output = invoke("export", "loop", tmp_path, "--iteration", 1, "--format", "csv", "-w", workspace)
    assert code == 0
    folder = tmp_path / "loop-i001-triplets"
    assert f"{folder}/triplets.csv: 2 triplets of curate@1" in output
    assert sorted(path.name for path in folder.iterdir()) == ["images", "index.html", "triplets.csv"]
    with (folder / "triplets.csv").open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    rows[1] |= {"veto": "yes", "reason": "not b, but a; see above", "by": "Jane"}
    back = tmp_path / "back.csv"
    with back.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    code, output = invoke("import", "loop", back, "--iteration", 1, "-w", workspace)
    assert code == 0
    (written,) = (workspace / "reviews").glob("*.jsonl")
    (decision,) = map(json.loads, written.read_text().splitlines())
    assert {key: decision[key] for key in ("triplet_id", "veto", "reason", "by")} == {
        "triplet_id": "t1", "veto": True, "reason": "not b, but a; see above", "by": "Jane",
    }  # fmt: skip
    assert f"  reviews: [{{iteration: 1, sha256: {written.stem}}}]\n" in output
    assert f"medgr2 run CYCLE.yaml -w {workspace} --restart-from curate@1" in output
    spec = resolve(
        CycleSpec.model_validate({**make_spec().dump(), "reviews": [{"iteration": 1, "sha256": written.stem}]})
    )
    asked = [stage_parameters(spec, "loop", "curate", iteration).dump() for iteration in (1, 2)]
    assert [parameters.get("review", "") for parameters in asked] == [written.stem, ""]


def test_what_cannot_be_done_is_one_line_and_leaves_nothing(workspace: Path, tmp_path: Path) -> None:
    back = tmp_path / "back.jsonl"
    back.write_text('{"triplet_id": "t7", "veto": true}\n')
    code, output = invoke("import", "loop", back, "--iteration", 1, "-w", workspace)
    assert code == 65
    assert output.startswith("back.jsonl:1: no candidate 't7'")
    assert output.count("\n") == 1
    assert not (workspace / "reviews").exists()
    here = tmp_path / "here"
    here.mkdir()
    for arguments, expected, words in (
        (("export", "lop", here, "--iteration", 1), 2, "no cycle 'lop'"),
        (("export", "loop", here, "--iteration", 2), 78, "curate@2 has not finished"),
        (("export", "loop", here / "no" / "where", "--iteration", 1), 2, "no such folder"),
        (("import", "loop", tmp_path / "none.csv", "--iteration", 1), 2, "No such file"),
    ):
        code, output = invoke(*arguments, "-w", workspace)
        assert (code, words in output, output.count("\n")) == (expected, True, 1), output
    for image in workspace.glob("images/*/*.png"):
        image.unlink()
    code, output = invoke("export", "loop", here, "--iteration", 1, "-w", workspace)
    assert code == 65
    assert "missing from the image store" in output
    assert list(here.iterdir()) == []


def test_the_reader_may_write_to_one_folder_at_most() -> None:
    cycle = Cycle(metadata=Metadata(name="loop", namespace="ml", uid="u"), spec=make_spec())

    def mounts(writable: str) -> list[dict[str, Any]]:
        pod = reader_pod(cycle, "r", "image", 600, RenderSettings(image=""), writable)
        return [m for m in pod["spec"]["containers"][0]["volumeMounts"] if m["name"] == "workspace"]

    assert mounts("") == [{"name": "workspace", "mountPath": "/workspace", "readOnly": True}]
    assert mounts("reviews") == [
        *mounts(""), {"name": "workspace", "mountPath": "/workspace/reviews", "subPath": "reviews"},
    ]  # fmt: skip
