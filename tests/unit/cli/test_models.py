"""`medgr2 model`: which checkpoint to take and why, where it is, and a program that asks it, which runs as printed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.support.cycle_documents import tiny_cycle
from tests.support.fake_artifacts import publish
from typer.testing import CliRunner

from medgr2_api.cycle import Cycle
from medgr2_api.status import CycleStatus
from medgr2_jobs.models.tiny import model as tiny_model
from medgr2_jobs.models.tiny import tokenizer as tiny_tokenizer
from medgr2_operator.cli.app import app
from medgr2_operator.cli.errors import CommandError
from medgr2_operator.cli.hints import typed
from medgr2_operator.cli.models import choose, print_models
from medgr2_operator.local.state import StateFile
from medgr2_operator.plan.spec_edits import SpecEdits
from medgr2_operator.plan.types import StageKey

SCORES = [("base", 0, 0.4), ("sft", 1, 0.7), ("grpo", 1, 0.9), ("sft", 2, 0.8), ("grpo", 2, 0.85)]


def cycle_of(*scores: tuple[str, int, float], stages: tuple[tuple[str, int], ...] = ()) -> Cycle:
    made = stages or tuple((name, t) for name, t, _ in scores if name != "base")
    status: dict[str, Any] = {
        "phase": "Complete",
        "stages": [
            {"name": name, "iteration": t, "state": "Succeeded", "attempt": 1, "inputHash": f"{name}{t}"}
            for name, t in made
        ],
        "scores": [{"checkpoint": name, "iteration": t, "macroAccuracy": value} for name, t, value in scores],
    }
    if scores:
        status["best"] = max(status["scores"], key=lambda score: score["macroAccuracy"])
    if made:
        newest = max(made, key=lambda stage: stage[1])
        status["models"] = {"policy": {"stage": newest[0], "iteration": newest[1], "digest": "d"}}
    document = tiny_cycle(iterations=2)
    return Cycle.model_validate({**document, "status": CycleStatus.model_validate(status).dump()})


def test_the_best_on_validation_and_not_the_newest() -> None:
    chosen = choose(cycle_of(*SCORES))
    assert chosen.record is not None
    assert (chosen.record.name, chosen.record.iteration) == ("grpo", 1)
    assert chosen.why == "the best on validation, macro accuracy 90.0 %"


def test_a_loop_that_made_nothing_better() -> None:
    chosen = choose(cycle_of(("base", 0, 0.9), ("sft", 1, 0.5)))
    assert chosen.record is None
    assert "no checkpoint is better than the model that the loop started from" in chosen.why


def test_without_a_measurement_the_newest() -> None:
    chosen = choose(cycle_of(stages=(("sft", 1), ("sft", 2))))
    assert chosen.record is not None
    assert (chosen.record.iteration, "nothing was measured" in chosen.why) == (2, True)
    with pytest.raises(CommandError, match="no model has been trained so far"):
        choose(cycle_of())


def test_what_did_not_go_on_is_shown_and_not_taken(capsys: pytest.CaptureFixture[str]) -> None:
    """GRPO was worse in the first iteration, and was skipped in the second one."""
    cycle = cycle_of(("sft", 1, 0.7), ("grpo", 1, 0.6), ("sft", 2, 0.8), stages=(
        ("sft", 1), ("grpo", 1), ("sft", 2), ("grpo", 2)))  # fmt: skip
    stages = [
        record.model_copy(update={"promoted": False, "message": "skipped: sft beats the reward model"})
        if record.name == "grpo"
        else record
        for record in cycle.status.stages
    ]
    cycle = cycle.model_copy(update={"status": cycle.status.model_copy(update={"stages": stages})})
    print_models(
        cycle, lambda record: f"place of {record.name}@{record.iteration}", lambda record: "folder", str, typed
    )
    output = capsys.readouterr().out
    assert "  grpo@1 (did not go on), validation macro accuracy 60.0 %: place of grpo@1\n" in output
    assert "* sft@2, validation macro accuracy 80.0 %: place of sft@2\n" in output
    assert "  grpo@2 (did not go on): skipped: sft beats the reward model\n" in output
    assert "take sft@2 (*): the best on validation" in output
    assert "  medgr2 export loop exported  # a folder that any loader reads" in output
    assert "  medgr2 ask loop picture.png 'What does the image show?' --option 'a mass'" in output


def test_the_printed_program_asks_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    processor = tiny_tokenizer.processor()
    tiny_model.build(processor.tokenizer, 1).save_pretrained(folder)
    processor.save_pretrained(folder)
    ref = publish(tmp_path, "sft", 1, folders={"model": folder})
    cycle = cycle_of(("sft", 1, 0.7))
    name = ref.path.rsplit("/", 1)[1]
    stages = [record.model_copy(update={"input_hash": name}) for record in cycle.status.stages]
    cycle = cycle.model_copy(update={"status": cycle.status.model_copy(update={"stages": stages})})
    StateFile(tmp_path, "loop").save(cycle)
    shown = CliRunner().invoke(app, ["model", "loop", "-w", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert f"* sft@1, validation macro accuracy 70.0 %: {tmp_path / ref.path}" in shown.output
    program = shown.output[shown.output.index("from medgr2_jobs") :]
    Image.new("RGB", (64, 64), "gray").save(tmp_path / "picture.png")
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n")


def test_a_model_that_is_gone(tmp_path: Path) -> None:
    StateFile(tmp_path, "loop").save(cycle_of(("sft", 1, 0.7)))
    gone = CliRunner().invoke(app, ["model", "loop", "-w", str(tmp_path)])
    assert (gone.exit_code, "the model of sft@1 is not there any more" in gone.output) == (2, True)
    (tmp_path / "artifacts/sft/sft1").mkdir(parents=True)
    (tmp_path / "artifacts/sft/sft1/manifest.json").write_text(json.dumps({"parts": None}))
    assert CliRunner().invoke(app, ["model", "loop", "-w", str(tmp_path)]).exit_code == 2


def test_an_edited_cycle_does_not_pass_its_models_off_as_those_of_the_spec(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edits = SpecEdits({StageKey(1, "sft"): "done with other parameters: seed: 17 → 18"}, (StageKey(1, "sft"),))
    monkeypatch.setattr("medgr2_operator.cli.models.edits_of", lambda cycle: edits)
    print_models(cycle_of(*SCORES), lambda _: "here", lambda _: "here", lambda key: f"medgr2 restart {key}", typed)
    said = capsys.readouterr().out
    assert "its results are not of the spec as it is now" in said
    assert said.index("medgr2 restart sft@1  # applies it") < said.index("take grpo@1 (*)")
