"""Stage generate with the scripted generator."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support import jobs_fixtures

from medgr2_api.stage_contract import Shard, StageRequest
from medgr2_jobs.runner import main
from medgr2_jobs.store.rows.candidates import Candidate, Truth
from medgr2_jobs.store.rows.prepared import PhantomRow

PARAMETERS: dict[str, Any] = {
    "seed": 5,
    "iteration": 1,
    "provider": {
        "kind": "scripted",
        "scripted": {"errorRate": 0.4, "blindSpots": 0.0, "irrelevantRate": 0.1, "incoherentRate": 0.1},
    },
    "paradigms": [{"name": "MetaCognitive"}],
    "questionTypes": ["Diagnosis"],
    "candidates": 40,
    "questionsPerImage": 3,
    "sampling": {},
    "answerFormat": "OptionText",
    "shards": 1,
}


@pytest.fixture
def prepared(tmp_path: Path) -> jobs_fixtures.Prepared:
    return jobs_fixtures.phantoms(tmp_path, {"train": 20, "validation": 4, "test": 4})


def asked(root: Path, prepared: jobs_fixtures.Prepared, iteration: int = 1, **changes: Any) -> StageRequest:
    fields = {name: changes.pop(name) for name in ("shard", "attempt") if name in changes}
    prepare = jobs_fixtures.publish(root, "prepare", prepared.tables)
    parameters = {**PARAMETERS, "iteration": iteration, **changes}
    return jobs_fixtures.request("generate", iteration, parameters, {"prepare": prepare}, **fields)


def test_candidates(tmp_path: Path, prepared: jobs_fixtures.Prepared) -> None:
    found = jobs_fixtures.run(tmp_path, asked(tmp_path, prepared))
    rows, truth = found.rows(Candidate), found.rows(Truth)
    assert len(rows) == 40
    train = {row.image_sha256 for row in prepared.images if row.split == "train"}
    assert {row.image_sha256 for row in rows} <= train
    assert len({(row.image_sha256, row.question_type) for row in rows}) == 40
    assert [row.triplet_id for row in rows] == [row.triplet_id for row in truth]
    assert 0 < sum(row.correct for row in truth) < 40
    assert {row.outcome for row in rows} == {"ok"}
    assert {row.generator for row in rows} == {"scripted"}
    for row in rows:
        assert row.response.endswith(f"<answer>{row.options[row.answer_index]}</answer>")
    assert found.manifest.counters["candidates"] == found.manifest.counters["ok"] == 40


def test_again_is_the_same_and_another_seed_is_not(tmp_path: Path, prepared: jobs_fixtures.Prepared) -> None:
    one = jobs_fixtures.run(tmp_path, asked(tmp_path, prepared)).digest
    shutil.rmtree(tmp_path / "artifacts" / "generate")
    assert jobs_fixtures.run(tmp_path, asked(tmp_path, prepared)).digest == one
    assert jobs_fixtures.run(tmp_path, asked(tmp_path, prepared, seed=6)).digest != one


def test_iterations_go_on(tmp_path: Path, prepared: jobs_fixtures.Prepared) -> None:
    first = jobs_fixtures.run(tmp_path, asked(tmp_path, prepared, 1, candidates=30)).rows(Candidate)
    second = jobs_fixtures.run(tmp_path, asked(tmp_path, prepared, 2, candidates=30, seed=99)).rows(Candidate)
    images = [{row.image_sha256 for row in rows} for rows in (first, second)]
    assert len(images[0] & images[1]) == 0
    assert len(images[0] | images[1]) == 20
    assert not {row.triplet_id for row in first} & {row.triplet_id for row in second}


def test_shards_make_the_whole(tmp_path: Path, prepared: jobs_fixtures.Prepared) -> None:
    whole = jobs_fixtures.run(tmp_path, asked(tmp_path, prepared)).rows(Candidate)
    for index in range(3):
        request = asked(tmp_path, prepared, shards=3, shard=Shard(index=index, count=3))
        assert main.execute(request, tmp_path) == 0
    assert jobs_fixtures.reader(tmp_path, request).rows(Candidate) == whole


def test_more_questions_than_kinds_take_more_images(tmp_path: Path, prepared: jobs_fixtures.Prepared) -> None:
    rows = jobs_fixtures.run(tmp_path, asked(tmp_path, prepared, questionsPerImage=5)).rows(Candidate)
    assert len(rows) == 40
    assert len({row.image_sha256 for row in rows}) == 10


def test_no_candidates(tmp_path: Path, prepared: jobs_fixtures.Prepared) -> None:
    found = jobs_fixtures.run(tmp_path, asked(tmp_path, replace(prepared, images=[]), candidates=0))
    assert found.rows(Candidate) == found.rows(Truth) == []


def test_real_images_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prepared = jobs_fixtures.phantoms(tmp_path, {"train": 3}, real=3)
    assert main.execute(asked(tmp_path, prepared), tmp_path) == 78
    assert "is no phantom" in capfd.readouterr().err
    request = asked(tmp_path, prepared)
    without = {kind: rows for kind, rows in prepared.tables.items() if kind is not PhantomRow}
    request.inputs["prepare"] = jobs_fixtures.publish(tmp_path, "prepare", without)
    assert main.execute(request, tmp_path) == 78


def test_no_training_image(tmp_path: Path) -> None:
    assert main.execute(asked(tmp_path, jobs_fixtures.phantoms(tmp_path, {"validation": 2})), tmp_path) == 65


@pytest.mark.parametrize("kind", ["gemini", "vllm", "oracle"])
def test_other_providers(
    tmp_path: Path, prepared: jobs_fixtures.Prepared, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    request = asked(tmp_path, prepared)
    request.parameters["provider"] = {"kind": kind}  # whoever writes requests may know more kinds than this version
    assert main.execute(request, tmp_path) == 78
    assert kind in capfd.readouterr().err


def test_light_imports() -> None:
    code = (
        "import sys, medgr2_jobs.runner.main, medgr2_jobs.stages.generate, medgr2_jobs.stages.curate\n"
        "heavy = {'torch', 'transformers', 'openai', 'trl'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
