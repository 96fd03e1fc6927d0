"""`medgr2 review` in a workspace on this computer, as a person runs it; and how the reader may write."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from tests.support.curate_fixtures import candidate
from tests.support.cycle_documents import spec_with
from tests.support.cycle_specs import make_spec
from tests.support.fake_artifacts import publish
from tests.support.fixtures import prepare_parameters
from typer.testing import CliRunner

from medgr2_api.cycle import Cycle, CycleSpec, Metadata
from medgr2_api.presets import resolve
from medgr2_api.stages import stage_parameters
from medgr2_jobs.store.rows import Split
from medgr2_jobs.store.rows.candidates import Candidate, Decision
from medgr2_jobs.store.rows.prepared import Image, ImageOrigin
from medgr2_operator.cli.app import app
from medgr2_operator.cli.cluster import cluster
from medgr2_operator.local.state import StateFile
from medgr2_operator.render.render_context import RenderSettings
from medgr2_operator.render.volume_reader_pod import reader_pod

runner = CliRunner(env={"COLUMNS": "200", "KUBECONFIG": "/nowhere"})


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    root = tmp_path / "workspace"
    root.mkdir()
    image = stored_image(root, "black")
    reviewed(root, {"t0": image, "t1": image}, {image: ["seed"]})
    return root


def stored_image(root: Path, colour: str) -> str:
    from medgr2_jobs.store.images import ImageStore

    return ImageStore(root).add(PIL.Image.new("RGB", (32, 32), colour), 10_000).sha256


def reviewed(root: Path, shown: dict[str, str], origins: dict[str, list[str]]) -> None:
    """Kept triplets about these images, and which sources have each; prepare read that all may leave."""
    images = [
        Image(name, 32, 32, "CT", sources[0], "", Split.TRAIN, True, "", "", "") for name, sources in origins.items()
    ]
    held = [ImageOrigin(name, source) for name, sources in origins.items() for source in sources]
    tables: dict[type[Any], list[Any]] = {Image: images, ImageOrigin: held}
    publish(root, "prepare", 0, tables=tables, parameters=prepare_parameters(data={"benchmarks": []}), cycle="loop")
    candidates = [candidate(name, image, "What?", options=("a", "b"), answer_index=1) for name, image in shown.items()]
    publish(root, "generate", 1, tables={Candidate: candidates}, cycle="loop")
    decisions = [Decision(row.triplet_id, True, (), None) for row in candidates]
    parameters = {"seed": 1, "curation": {"selection": {"strategy": "All"}}, "answerFormat": "Letter"}
    publish(root, "curate", 1, tables={Decision: decisions}, parameters=parameters, cycle="loop")


def stored(root: Path, **allowed: bool) -> None:
    """The spec by which the cycle last ran: what its sources say now."""
    sources = [{"name": name, "format": "Phantom", "phantom": {"images": 40 if name == "seed" else 30,
                "questionsPerImage": 4 if name == "seed" else 0}, "allowExternal": says}
               for name, says in allowed.items()]  # fmt: skip
    spec = spec_with({"data": {"sources": sources}, "generator": {"scripted": {}}})
    StateFile(root, "loop").save(Cycle(metadata=Metadata(name="loop", uid="u"), spec=spec))


def test_images_that_may_not_leave_are_left_out(tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    image, other = stored_image(workspace, "red"), stored_image(workspace, "green")
    reviewed(workspace, {"t0": image, "t1": other}, {image: ["seed"], other: ["seed", "pool"]})

    def exported(*options: str) -> tuple[int, str, set[str]]:
        code, output = invoke("export", "loop", tmp_path, "--iteration", 1, "-w", workspace, "--force", *options)
        folder = tmp_path / "loop-i001-triplets"
        text = (folder / "triplets.jsonl").read_text() + (folder / "index.html").read_text() if folder.exists() else ""
        there = {path.stem for path in folder.glob("images/*.png")}
        assert all((name in text) is (name in there) for name in (image, other)), "nor what is said about it"
        return code, output, there

    assert exported()[::2] == (0, {image, other}), "as prepare read them"
    stored(workspace, seed=True, pool=True)
    assert exported()[::2] == (0, {image, other})
    stored(workspace, seed=True, pool=False)
    code, output, there = exported()
    assert (code, there) == (0, {image})
    assert "left out: 1 triplets that may not leave the site, for their image or for what a student" in output
    code, output, there = exported("--on-site")
    assert (code, there) == (0, {image, other})
    assert "it is for experts on site" in output
    stored(workspace, seed=True)  # pool has gone
    assert exported()[2] == {image}
    stored(workspace, seed=False, pool=True)
    code, output, _ = exported()
    assert code == 78
    assert "none of the 2 triplets may leave the site" in output


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
        lines = list(csv.DictReader(stream))
    lines[1] |= {"veto": "yes", "reason": "not b, but a; see above", "by": "Jane"}
    back = tmp_path / "back.csv"
    with back.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(lines[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(lines)
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
