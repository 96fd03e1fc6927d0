"""The stage contract in one process: what goes wrong at moments that no process of a test hits by chance."""

from __future__ import annotations

import errno
import importlib
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.support import curate_fixtures, jobs_fixtures
from tests.support.stage_registry import stub

from medgr2_api import stages
from medgr2_api.stage_contract import RESULT_PATH_ENV, ArtifactRef, CycleRef, StageRequest, StageResult
from medgr2_jobs.runner import main, process_tuning, publishing
from medgr2_jobs.runner.context import StageContext, StageOutcome
from medgr2_jobs.store.artifact import ArtifactWriter
from medgr2_jobs.store.rows.candidates import Candidate

Code = Callable[[StageContext[Any]], StageOutcome]


class Stage:
    """Stage score with whatever code a test puts in its place."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root / "workspace"
        self.root.mkdir()
        self._result = root / "result.json"
        self._patch = monkeypatch
        monkeypatch.setenv(RESULT_PATH_ENV, str(self._result))
        monkeypatch.setitem(stages._STAGES, "score", stub("score", "stub_stage", "x.bin", "dice.txt"))

    def request(self, *, seed: int = 1, inputs: dict[str, ArtifactRef] | None = None, **fields: Any) -> StageRequest:
        parameters = {"seed": seed, "shards": 1, "answerFormat": "Letter"}
        return jobs_fixtures.request("score", 1, parameters, inputs or {}, **fields)

    def run(self, code: Code, asked: StageRequest | None = None) -> StageResult:
        self._patch.setitem(sys.modules, "stub_stage", SimpleNamespace(run=code))
        number = main.execute(asked or self.request(), self.root)
        result = StageResult.model_validate_json(self._result.read_text())
        assert result.exit_code == number
        return result


@pytest.fixture
def score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


def write(ctx: StageContext[Any]) -> StageOutcome:
    ctx.writer.path("x.bin").write_bytes(b"x")
    return StageOutcome()


def never(ctx: StageContext[Any]) -> StageOutcome:
    raise AssertionError("it is published already")


def test_an_error_after_the_commit_takes_nothing_away(score: Stage) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publishing, "link", lambda *_: 1 / 0)
        assert score.run(write).reason == "ZeroDivisionError"
    result = score.run(never, score.request(attempt=2))
    assert (result.exit_code, result.reason) == (0, "Reused")
    assert jobs_fixtures.reader(score.root, score.request()).file("x.bin").read_bytes() == b"x"


def test_an_artifact_that_another_cycle_published_meanwhile_is_verified(score: Stage) -> None:
    def slow(ctx: StageContext[Any]) -> StageOutcome:
        if ctx.request.cycle.name != "other":
            other = score.request(cycle=CycleRef(name="other", uid="uid-2"))
            assert main.execute(other, ctx.root) == 0
            (part,) = ctx.root.rglob("x.bin")
            part.write_bytes(b"y")
        return write(ctx)

    result = score.run(slow)
    assert (result.exit_code, result.reason) == (65, "CorruptArtifact")
    assert "x.bin: sha256 differs" in result.message


def test_who_comes_second_says_what_it_spent_itself(score: Stage) -> None:
    def slow(ctx: StageContext[Any]) -> StageOutcome:
        write(ctx)
        if ctx.request.cycle.name == "other":
            return StageOutcome(usage={"gpuSeconds": 1.0})
        assert main.execute(score.request(cycle=CycleRef(name="other", uid="uid-2")), ctx.root) == 0
        return StageOutcome(usage={"gpuSeconds": 7.0})

    result = score.run(slow)
    assert (result.exit_code, result.usage["gpuSeconds"]) == (0, 7.0)
    assert jobs_fixtures.reader(score.root, score.request()).manifest.usage["gpuSeconds"] == 1.0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_found_behind_a_librarys_own_error(score: Stage, number: int) -> None:
    def fill(ctx: StageContext[Any]) -> StageOutcome:
        try:
            raise OSError(number, os.strerror(number))
        except OSError as error:
            raise RuntimeError("could not write the tensors") from error

    result = score.run(fill)
    assert (result.exit_code, result.reason) == (75, "DiskFull")
    assert str(score.root) in result.message


def test_a_full_disk_that_is_only_told_in_words(score: Stage) -> None:
    def fill(ctx: StageContext[Any]) -> StageOutcome:
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    assert score.run(fill).reason == "DiskFull"


def test_a_missing_package_is_not_tried_for_again(score: Stage) -> None:
    def needs(ctx: StageContext[Any]) -> StageOutcome:
        importlib.import_module("package_that_nobody_has")
        return StageOutcome()

    result = score.run(needs)
    assert (result.exit_code, result.reason) == (78, "PackageMissing")
    assert "No module named 'package_that_nobody_has'" in result.message


def test_all_randomness_comes_from_the_seed(score: Stage) -> None:
    def dice(ctx: StageContext[Any]) -> StageOutcome:
        ctx.writer.path("dice.txt").write_text(f"{random.random()} {np.random.random()}")
        return StageOutcome()

    digests = []
    for seed in (1, 1, 2):
        digests.append(score.run(dice, score.request(seed=seed)).output_digest)
        shutil.rmtree(score.root / "artifacts")
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(("loaded", "gpu"), [(True, False), (True, True), (False, False)])
def test_a_stage_that_has_torch_keeps_the_memory_it_frees_but_not_on_a_gpu(
    score: Stage, monkeypatch: pytest.MonkeyPatch, loaded: bool, gpu: bool
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(process_tuning, "keep_freed_memory", lambda: asked.append("kept"))
    torch = SimpleNamespace(
        manual_seed=lambda seed: None,
        set_num_threads=lambda threads: None,
        cuda=SimpleNamespace(is_available=lambda: gpu, is_initialized=lambda: False),
    )
    if loaded:
        monkeypatch.setitem(sys.modules, "torch", torch)
    else:
        monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert score.run(write).exit_code == 0
    assert asked == (["kept"] if loaded and not gpu else [])


def test_the_manifest_says_what_it_was_made_from_and_with(score: Stage) -> None:
    rows = [curate_fixtures.candidate("t", "i")]
    candidates = jobs_fixtures.publish(score.root, "generate", {Candidate: rows}, iteration=1)
    asked = score.request(inputs={"candidates": candidates}, attempt=3)
    assert score.run(write, asked).exit_code == 0
    made = jobs_fixtures.reader(score.root, asked).manifest
    assert made.inputs == {"candidates": candidates.output_digest}
    assert made.parameters == asked.parameters
    assert (made.cycle, made.iteration, made.attempt) == ("test", 1, 3)
    assert made.code_version == stages.definition("score").code_version
    assert {"torch", "transformers", "trl", "pyarrow"} <= set(made.packages)


def test_a_model_that_was_not_promoted_is_told_and_told_again(score: Stage) -> None:
    def judge(promoted: bool) -> Code:
        return lambda ctx: StageOutcome(promoted=promoted) if write(ctx) else StageOutcome()

    kept = score.run(judge(False))
    assert kept.promoted is False
    assert score.run(never, score.request(attempt=2)).promoted is False
    shutil.rmtree(score.root / "artifacts")
    assert score.run(judge(True)).output_digest != kept.output_digest, "what reads it depends on the promotion"


def test_a_restarted_attempt_begins_empty(score: Stage) -> None:
    """A container that is restarted runs the same attempt again; what it left behind is not published."""
    writer = ArtifactWriter(score.root, score.request())
    writer.open()
    writer.path("half.bin").write_bytes(b"half")
    score.run(write)
    assert [part.name for part in jobs_fixtures.reader(score.root, score.request()).manifest.parts] == ["x.bin"]
