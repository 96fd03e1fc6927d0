"""Stages evaluate, evaluategrpo and measure end to end on phantoms with the tiny model."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from medgr2_api import paths
from medgr2_api.stage_contract import ArtifactRef, ExitCode, Shard, StageRequest
from medgr2_jobs.errors import Checkpointed
from medgr2_jobs.runner import parts
from medgr2_jobs.runner.context import StageContext
from medgr2_jobs.runner.main import execute
from medgr2_jobs.stages import evaluate
from medgr2_jobs.store import tables
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


def measured(root: Path, iteration: int, prepare: ArtifactRef, **answers: ArtifactRef) -> ArtifactReader:
    """What stage measure makes of answers."""
    said = {"seed": 3, "iteration": iteration}
    request = stage_request("measure", iteration, said, {"prepare": prepare, **answers})
    return ArtifactReader(root, run_stage(root, request))


def test_the_base_model_under_every_condition(prepared: tuple[Path, ArtifactRef]) -> None:
    root, prepare = prepared
    ref = run_stage(root, stage_request("evaluate", 0, parameters(0), {"prepare": prepare}))
    said = ArtifactReader(root, ref)
    assert said.manifest.counters["asked"] * 9 == len(said.rows(Prediction)) * 4
    reader = measured(root, 0, prepare, evaluate=ref)
    assert set(reader.rows(Prediction)) == set(said.rows(Prediction))
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
    asked: dict[str, ArtifactRef] = {}
    for stage, name in (("evaluate", "sft"), ("evaluategrpo", "grpo")):
        inputs = {"prepare": prepare, name: checkpoint(root, prepare, name)}
        request = stage_request(stage, 1, parameters(1, ["BlankImage", "OptionPrior"]), inputs)
        asked[stage] = run_stage(root, request)
        shutil.rmtree(root / asked[stage].path)
        assert run_stage(root, request).output_digest == asked[stage].output_digest
    reader = measured(root, 1, prepare, **asked)
    rows = reader.rows(Prediction)
    assert {row.checkpoint for row in rows} == {"sft", "grpo"}
    assert {row.condition for row in rows} == {"real", "blank"}  # prior and chance are iteration 0's
    assert set(reader.manifest.counters) >= {f"validation/{name}/macroAccuracy" for name in ("sft", "grpo")}
    same = [[r.text, r.predicted] for r in rows if r.checkpoint == "sft"]
    assert same == [[r.text, r.predicted] for r in rows if r.checkpoint == "grpo"]
    alone = measured(root, 1, prepare, evaluate=asked["evaluate"])
    assert {row.checkpoint for row in alone.rows(Prediction)} == {"sft"}, "GRPO may be absent"
    of_sft = [row for row in results(reader) if row["checkpoint"] == "sft"]
    assert of_sft == results(alone), "what is said of one does not depend on the other"


def test_an_evaluation_of_before_that_asked_both_checkpoints_is_read(prepared: tuple[Path, ArtifactRef]) -> None:
    """Its part of GRPO's is left to evaluategrpo, which runs after an upgrade."""
    root, prepare = prepared
    refs = {name: checkpoint(root, prepare, name) for name in ("sft", "grpo")}
    asked = {
        stage: run_stage(root, stage_request(stage, 1, parameters(1, []), {"prepare": prepare, name: refs[name]}))
        for stage, name in (("evaluate", "sft"), ("evaluategrpo", "grpo"))
    }
    both = [row for ref in asked.values() for row in ArtifactReader(root, ref).rows(Prediction)]
    before = publish(root, "evaluate", 1, tables={Prediction: both})
    now = measured(root, 1, prepare, **asked)
    assert measured(root, 1, prepare, **{**asked, "evaluate": before}).digest == now.digest


def test_without_a_checkpoint_there_is_nothing_to_ask(prepared: tuple[Path, ArtifactRef]) -> None:
    root, prepare = prepared
    for stage in ("evaluate", "evaluategrpo"):
        assert execute(stage_request(stage, 1, parameters(1), {"prepare": prepare}), root) == ExitCode.CONFIG
    assert execute(stage_request("measure", 1, {"seed": 3, "iteration": 1}, {"prepare": prepare}), root) == (
        ExitCode.CONFIG
    )


def test_shards_give_what_one_process_gives(
    prepared: tuple[Path, ArtifactRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in its own order of parts: one unit at a time, or all; and a set of questions is cut between two shards."""
    root, prepare = prepared
    monkeypatch.setattr(evaluate, "_BATCH", 4)
    whole = run_stage(root, stage_request("evaluate", 0, parameters(0), {"prepare": prepare}, token="whole"))
    request = stage_request("evaluate", 0, parameters(0), {"prepare": prepare}, token="divided")
    for index, seconds in ((2, 0.0), (0, 1e9), (1, 1.0)):
        monkeypatch.setattr(parts, "SECONDS", seconds)
        assert execute(request.model_copy(update={"shard": Shard(index=index, count=3)}), root) == ExitCode.OK
    path = str(paths.artifact("evaluate", request.input_hash))
    divided = ArtifactReader(root, ArtifactRef(stage="evaluate", iteration=0, path=path, output_digest=""))
    assert len(divided.shards) == 3
    items = [{row.item_id for row in tables.read(folder / manifest.parts[0].path, Prediction)}
             for folder, manifest in divided.shards]  # fmt: skip
    assert all(items)
    assert sum(map(len, items)) == len(set().union(*items)), "no question is in two shards"
    refs = (whole, divided.ref.model_copy(update={"output_digest": divided.digest}))
    one, other = (measured(root, 0, prepare, evaluate=ref) for ref in refs)
    assert one.digest == other.digest
    assert one.manifest.counters == other.manifest.counters


def context(root: Path, request: StageRequest) -> StageContext[Any]:
    from medgr2_api.stages.evaluate import EvaluateParameters

    made = StageContext(request, EvaluateParameters.model_validate(request.parameters), root)
    made.writer.open()
    return made


def test_a_stop_keeps_finished_parts_and_the_next_attempt_goes_on(
    prepared: tuple[Path, ArtifactRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, prepare = prepared
    monkeypatch.setattr(evaluate, "_BATCH", 16)
    monkeypatch.setattr(parts, "SECONDS", 0.0)
    request = stage_request("evaluate", 0, parameters(0, ["BlankImage"]), {"prepare": prepare})
    asked: list[tuple[str, range]] = []
    original = evaluate._Exam._answers

    def spy(self: Any, *arguments: Any) -> Any:
        (batch,) = arguments[2]
        asked.append((self._name, batch))
        if len(asked) == 3:
            first.stop.set()
        return original(self, *arguments)

    monkeypatch.setattr(evaluate._Exam, "_answers", spy)
    first = context(root, request)
    with pytest.raises(Checkpointed) as stopped:
        evaluate.run(first)
    assert stopped.value.step == len(list(first.work.glob("*.json"))) == 2
    again = context(root, request.model_copy(update={"attempt": 2}))
    evaluate.run(again)
    assert asked[3] == asked[2], "the part that was under way"
    done = [*asked[:2], *asked[3:]]
    assert len(set(done)) == len(done), "nothing is asked twice"

    monkeypatch.setattr(parts, "SECONDS", 1e9)
    monkeypatch.setattr(evaluate._Exam, "_answers", original)
    undisturbed = stage_request("evaluate", 0, parameters(0, ["BlankImage"]), {"prepare": prepare}, token="fresh")
    reference = ArtifactReader(root, run_stage(root, undisturbed))
    name = "predictions.parquet"
    assert (again.writer.folder / name).read_bytes() == reference.file(name).read_bytes()
