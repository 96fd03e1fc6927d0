"""Stage evaluate end to end on phantoms with the tiny model."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from medgr2_api.stage_contract import ArtifactRef, ExitCode, StageRequest
from medgr2_jobs.errors import Checkpointed
from medgr2_jobs.runner.context import StageContext
from medgr2_jobs.runner.main import execute
from medgr2_jobs.stages import evaluate
from medgr2_jobs.store.artifact import ArtifactReader
from medgr2_jobs.store.rows.evaluation import Prediction
from medgr2_jobs.store.rows.prepared import Item
from tests.support.fake_artifacts import publish
from tests.support.fixtures import prepared_workspace, run_stage, stage_request

ALL = ["BlankImage", "ShuffledImage", "OptionsOnly", "OptionPrior"]


def parameters(iteration: int, controls: list[str] | None = None) -> dict[str, Any]:
    chosen = ALL if controls is None else controls
    return {"seed": 3, "iteration": iteration, "controls": chosen, "answerFormat": "OptionText"}


def checkpoint(root: Path, prepare: ArtifactRef, name: str) -> ArtifactRef:
    """Publishes the base model as if stage `name` had made it."""
    folder = ArtifactReader(root, prepare).folder_of("models/policy")
    return publish(root, name, 1, folders={"model": folder})


def results(reader: ArtifactReader) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(reader.file("results.json").read_text())
    return found


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ArtifactRef]:
    root = tmp_path_factory.mktemp("workspace")
    return root, prepared_workspace(root)[1]


def test_the_base_model_under_every_condition(prepared: tuple[Path, ArtifactRef]) -> None:
    root, prepare = prepared
    ref = run_stage(root, stage_request("evaluate", 0, parameters(0), {"prepare": prepare}))
    reader = ArtifactReader(root, ref)
    items = ArtifactReader(root, prepare).rows(Item)
    sizes = Counter(item.split for item in items)
    rows = reader.rows(Prediction)
    counts = Counter((row.split, row.condition, row.scoring) for row in rows)
    both = [(c, s) for c in ("real", "blank", "shuffled", "options_only") for s in ("greedy", "option_logprob")]
    assert counts == {
        (split, *kind): sizes[split]
        for split in ("validation", "test")
        for kind in [*both, ("option_prior", "option_logprob")]
    }
    assert {row.checkpoint for row in rows} == {"base"}
    assert {row.benchmark for row in rows if row.split == "test"} == {"bench"}
    for row in rows:
        assert row.correct == (row.predicted == row.answer_index)
        if row.scoring == "option_logprob":
            assert row.predicted == max(range(4), key=row.option_logprobs.__getitem__)

    counters = reader.manifest.counters
    table = {(r["split"], r["condition"], r["scoring"], r["slice"], r["metric"]): r["value"] for r in results(reader)}
    for metric in ("macroAccuracy", "microAccuracy"):
        key = ("validation", "real", "option_logprob", "all", metric)
        assert counters[f"validation/base/{metric}"] == table[key]
    right = [r.correct for r in rows if (r.split, r.condition, r.scoring) == ("test", "real", "greedy")]
    assert table["test", "real", "greedy", "all", "microAccuracy"] == pytest.approx(sum(right) / len(right), abs=1e-6)
    assert table["test", "chance", "option_logprob", "all", "microAccuracy"] == 0.25
    assert table["test", "real", "greedy", "all", "parseFailures"] > 0.5, (
        "four steps of captions do not teach the format"
    )
    assert len(counters) <= 12


def test_checkpoints_of_an_iteration_and_the_same_bytes_again(prepared: tuple[Path, ArtifactRef]) -> None:
    root, prepare = prepared
    inputs = {"prepare": prepare, **{name: checkpoint(root, prepare, name) for name in ("sft", "grpo")}}
    request = stage_request("evaluate", 1, parameters(1, ["BlankImage", "OptionPrior"]), inputs)
    first = run_stage(root, request)
    reader = ArtifactReader(root, first)
    rows = reader.rows(Prediction)
    assert {row.checkpoint for row in rows} == {"sft", "grpo"}
    assert {row.condition for row in rows} == {"real", "blank"}  # prior and chance are iteration 0's
    assert set(reader.manifest.counters) >= {f"validation/{name}/macroAccuracy" for name in ("sft", "grpo")}
    same = [[r.text, r.predicted] for r in rows if r.checkpoint == "sft"]
    assert same == [[r.text, r.predicted] for r in rows if r.checkpoint == "grpo"]
    shutil.rmtree(root / first.path)
    assert run_stage(root, request).output_digest == first.output_digest


def test_grpo_may_be_absent_but_not_both(prepared: tuple[Path, ArtifactRef]) -> None:
    root, prepare = prepared
    sft = checkpoint(root, prepare, "sft")
    ref = run_stage(root, stage_request("evaluate", 1, parameters(1, []), {"prepare": prepare, "sft": sft}))
    assert {row.checkpoint for row in ArtifactReader(root, ref).rows(Prediction)} == {"sft"}
    assert execute(stage_request("evaluate", 1, parameters(1), {"prepare": prepare}), root) == ExitCode.CONFIG


def context(root: Path, request: StageRequest) -> StageContext[Any]:
    from medgr2_api.stages.evaluate import EvaluateParameters

    made = StageContext(request, EvaluateParameters.model_validate(request.parameters), root)
    made.writer.open()
    return made


def test_a_stop_keeps_finished_parts_and_the_next_attempt_goes_on(
    prepared: tuple[Path, ArtifactRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, prepare = prepared
    request = stage_request("evaluate", 0, parameters(0, ["BlankImage"]), {"prepare": prepare})
    measured: list[str] = []
    original = evaluate._measure

    def spy(ctx: Any, lazy: Any, part: Any, progress: Any) -> Any:
        measured.append(part.condition)
        if len(measured) == 2:
            ctx.stop.set()
        return original(ctx, lazy, part, progress)

    monkeypatch.setattr(evaluate, "_measure", spy)
    first = context(root, request)
    with pytest.raises(Checkpointed):
        evaluate.run(first)
    assert len(list(first.work.glob("*.parquet"))) == 1
    again = context(root, request.model_copy(update={"attempt": 2}))
    evaluate.run(again)
    assert measured == ["real", "blank", "blank", "real", "blank"]  # the first part was not measured twice

    undisturbed = stage_request("evaluate", 0, parameters(0, ["BlankImage"]), {"prepare": prepare}, token="fresh")
    reference = ArtifactReader(root, run_stage(root, undisturbed))
    for name in ("predictions.parquet", "results.json"):
        assert (again.writer.folder / name).read_bytes() == reference.file(name).read_bytes()
