"""`medgr2 plan --fit`: its exit codes, what it prints, and where it finds the shapes of models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from medgr2_api.fit.known_models import CONFIGS
from medgr2_operator.cli.app import app

EXAMPLES = Path(__file__).parents[3] / "examples"
SMALL = {**CONFIGS["Qwen2.5-VL-3B-Instruct"], "num_hidden_layers": 2}


def run(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "400"}).invoke(app, ["plan", *arguments, "--fit"])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A cycle on models that nobody knows."""
    document: dict[str, Any] = yaml.safe_load((EXAMPLES / "omnimedvqa.yaml").read_text())
    document["spec"]["policy"]["baseModel"] = "models/ours"
    del document["spec"]["stages"]
    path = tmp_path / "cycle.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_the_quickstart_fits() -> None:
    result = run(str(EXAMPLES / "quickstart.yaml"), "--workspace", "/nonexistent")
    assert result.exit_code == 0, result.output
    assert "491,040" in result.output
    assert "does not fit" not in result.output


@pytest.mark.parametrize(
    ("name", "gpu"),
    [("one-gpu", "RTX 4090"), ("one-node", "H100 80GB"), ("two-nodes", "H100 80GB"), ("gemini", "A100 80GB")],
)
def test_an_example_fits_on_the_gpus_that_it_is_for(name: str, gpu: str) -> None:
    result = run(str(EXAMPLES / f"{name}.yaml"), "--gpu", gpu, "-w", "/nonexistent")
    assert result.exit_code == 0, result.output
    smaller = run(str(EXAMPLES / f"{name}.yaml"), "--gpu", "T4", "-w", "/nonexistent")
    assert smaller.exit_code == 78


@pytest.fixture
def whole(tmp_path: Path) -> str:
    """A cycle whose GRPO trains all weights of a 7B policy."""
    document: dict[str, Any] = yaml.safe_load((EXAMPLES / "omnimedvqa.yaml").read_text())
    document["spec"]["policy"]["grpo"] = {"lora": {"rank": 0}}
    document["spec"].pop("stages", None)
    path = tmp_path / "whole.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


def test_a_node_of_eight_and_what_it_lacks(whole: str) -> None:
    result = run(whole, "--gpu", "H100 80GB", "--gpus", "8", "-w", "/nonexistent")
    assert result.exit_code == 78
    assert "does not fit: grpo" in result.output
    assert "change: policy.grpo.lora: {rank: 64}: " in result.output
    assert "8.29 G" in result.output
    assert "assumed" in result.output


def test_as_json(whole: str) -> None:
    result = run(whole, "--gpus", "1", "--json", "-w", "/nonexistent")
    document = json.loads(result.stdout)
    grpo = next(stage for stage in document["stages"] if stage["stage"] == "grpo")
    assert result.exit_code == 78
    assert document["fits"] is grpo["fits"] is False
    assert grpo["memory"]["bytes"] == pytest.approx(sum(grpo["memory"]["parts"].values()))
    assert document["gpuHours"] > 0
    assert document["models"]["reward"]["parameters"] == 3_754_622_976


def test_a_model_that_nobody_knows_has_to_be_told(file: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "ws"
    unknown = run(str(file), "-w", str(workspace))
    assert unknown.exit_code == 2
    assert "policy model models/ours: its shape is not known" in unknown.stderr
    config = tmp_path / "elsewhere.json"
    config.write_text(json.dumps(SMALL))
    told = run(str(file), "-w", str(workspace), "--config", f"policy={config}")
    assert told.exit_code == 78  # stages without a GPU
    assert str(config) in told.output
    folder = workspace / "models/ours"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(SMALL))
    assert str(folder) in run(str(file), "-w", str(workspace)).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "Voodoo 2"], "--gpu Voodoo 2: not known"),
        (["--config", "policy"], "write policy=PATH"),
        (["--config", "policy=/nonexistent"], "/nonexistent: No such file"),
        (["--config", "student=/nonexistent"], "the cycle has no such model"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], message: str) -> None:
    result = run(str(EXAMPLES / "omnimedvqa.yaml"), "-w", "/nonexistent", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_broken_config_is_named(file: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    for content, message in (("{", "is not JSON"), ("[]", "is not a JSON object"), ("{}", "hidden_size is None")):
        config.write_text(content)
        result = run(str(file), "-w", str(tmp_path), "--config", f"policy={config}")
        assert result.exit_code == 2
        assert message in result.stderr


def test_its_options_need_it() -> None:
    result = CliRunner().invoke(app, ["plan", str(EXAMPLES / "quickstart.yaml"), "--gpu", "H100"])
    assert result.exit_code == 2
