"""The command line: what it imports, what it refuses, what it shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.support.cycle_specs import make_spec
from tests.support.simulator_helpers import finish, make_simulator
from typer.testing import CliRunner

from medgr2_api.cycle import Cycle, Metadata
from medgr2_operator.cli.app import app
from medgr2_operator.cli.errors import CommandError
from medgr2_operator.cli.run import restart_point
from medgr2_operator.local.state import StateFile

ROOT = Path(__file__).parents[3]
QUICKSTART = ROOT / "examples" / "quickstart.yaml"
runner = CliRunner(env={"COLUMNS": "200"})


def invoke(*arguments: object) -> tuple[int, str]:
    result = runner.invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


@pytest.mark.parametrize(
    "module",
    [
        "medgr2_operator.cli.app",
        "medgr2_operator.cli.run",
        "medgr2_operator.cli.plan",
        "medgr2_operator.local.terminal_ui",
    ],
)
def test_no_command_needs_what_only_stages_need(module: str) -> None:
    heavy = ["torch", "transformers", "trl", "pyarrow", "numpy", "kopf", "kubernetes", "medgr2_jobs"]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_imports_neither_models_nor_the_view() -> None:
    code = (
        "import sys; sys.argv = ['medgr2', '--help']\n"
        "from medgr2_operator.cli.app import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([name for name in ('pydantic', 'yaml', 'rich.live') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.name)
def test_examples_are_valid(path: Path) -> None:
    name = yaml.safe_load(path.read_text())["metadata"]["name"]
    code, output = invoke("validate", path)
    first, *remarks = output.splitlines()
    assert (code, first) == (0, f"{path}: {name} is valid")
    processes = r"  [a-z, ]+: [48] processes.*, one for each GPU( that trains; a vLLM has the other 4 and samples)?"
    assert all(re.fullmatch(processes, remark) for remark in remarks), output


def test_a_model_without_a_gpu_is_told(tmp_path: Path) -> None:
    """Valid for `medgr2 run`, which takes what its computer has."""
    document = yaml.safe_load((ROOT / "examples" / "one-gpu.yaml").read_text())
    document["spec"]["stages"] = [stage for stage in document["spec"]["stages"] if stage["name"] != "grpo"]
    path = tmp_path / "cycle.yaml"
    path.write_text(yaml.safe_dump(document))
    code, output = invoke("validate", path)
    assert code == 0
    (refused,) = [line for line in output.splitlines() if "a cluster refuses this" in line]
    assert "spec.stages[grpo].resources" in refused
    assert "nvidia.com/gpu: 1" in refused


def test_unknown_field_is_named_with_its_line_and_the_nearest_right_one(tmp_path: Path) -> None:
    path = tmp_path / "cycle.yaml"
    path.write_text(QUICKSTART.read_text().replace("  iterations: 2", "  iteration: 2"))
    code, output = invoke("validate", path)
    assert code == 2
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "iteration: 2" in text)
    assert f"{path}" in output
    assert f"line {line}" in output or f":{line}" in output
    assert "did you mean 'iterations'" in output


def test_unsupported_parts_are_refused_with_what_to_use_instead(tmp_path: Path) -> None:
    path = tmp_path / "cycle.yaml"
    asked = "generator: {scripted: {}}\n  stages: [{name: relabel, shards: 2}]"
    path.write_text(QUICKSTART.read_text().replace("generator: {scripted: {}}", asked))
    code, output = invoke("validate", path)
    assert code == 2
    assert "stages[0]" in output
    assert "only generate, score, preferences, evaluate and evaluategrpo have shards: set 1" in output


@pytest.mark.parametrize(
    ("asked", "where", "what"),
    [
        ("stages: [{name: sft, resources: {limits: {nvidia.com/gpu: two}}}]", "stages[0].resources", "'two' is not a"),
        ("stages: [{name: sft, patches: [{op: remove, path: /spec/x}]}]", "stages[sft].patches[0]", "does not apply"),
        ("stages: [{name: sft, shards: 1, numNodes: 2}, {name: score, shards: 2, numNodes: 2}]", "stages[", "numNodes"),
        ("template: {env: [{name: MEDGR2_A, value: b}]}", "spec.template.env[0]", "is the operator's to set"),
        ("queueing: {queueName: a b}", "spec.queueing.queueName", "becomes a label"),
    ],
)
def test_every_stage_is_rendered_once(tmp_path: Path, asked: str, where: str, what: str) -> None:
    path = tmp_path / "cycle.yaml"
    path.write_text(QUICKSTART.read_text().replace("  iterations: 2", f"  iterations: 2\n  {asked}"))
    code, output = invoke("validate", path)
    assert code == 2
    assert where in output
    assert what in output


@pytest.mark.parametrize("uri", ["../elsewhere", "a/../../b", "/etc"])
def test_paths_that_leave_the_workspace_are_refused(tmp_path: Path, uri: str) -> None:
    path = tmp_path / "cycle.yaml"
    path.write_text(
        QUICKSTART.read_text().replace(
            "{name: phantoms, format: Phantom, phantom: {images: 110, questionsPerImage: 4}}",
            f"{{name: phantoms, format: OmniMedVQA, uri: {uri}}}",
        )
    )
    code, output = invoke("validate", path)
    assert code == 2
    assert "data.benchmarks[0].uri" in output


def test_plan_shows_values_with_their_origin_and_all_stages(tmp_path: Path) -> None:
    code, output = invoke("plan", QUICKSTART, "--workspace", tmp_path)
    assert code == 0
    assert "policy.grpo.numGenerations" in output
    assert "preset Tiny" in output
    assert "spec" in output
    for stage in ("prepare@0", "reward@0", "generate@1", "grpo@2", "report@2"):
        assert stage in output
    assert "0 are already there" in output


def test_plan_says_of_each_value_who_set_it(tmp_path: Path) -> None:
    path = tmp_path / "cycle.yaml"
    path.write_text(QUICKSTART.read_text().replace("initFrom: Previous}", "sft: {lora: {rank: 8}}}"))
    _, output = invoke("plan", path, "--workspace", tmp_path)
    rows = [line.split() for line in output.splitlines()]
    origin = {row[0]: " ".join(row[2:]) for row in rows if len(row) > 2}
    assert origin["iterations"] == "spec"
    assert origin["data.split.validationFraction"] == "spec"
    assert origin["data.split.testFraction"] == "default"
    assert origin["policy.sft.learningRate"] == "preset Tiny"
    assert origin["policy.grpo.numGenerations"] == "preset Default"
    assert origin["policy.sft.lora.rank"] == "spec"
    assert origin["policy.sft.lora.alpha"] == "derived"


def test_what_one_computer_cannot_run_is_refused_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("medgr2_operator.cli.run.Executor")  # it must not come to that
    path = tmp_path / "cycle.yaml"
    path.write_text(QUICKSTART.read_text() + "  stages: [{name: sft, numNodes: 2}]\n")
    assert invoke("validate", path)[0] == 0, "a cluster can"
    code, output = invoke("run", path, "--workspace", tmp_path / "ws")
    assert code == 2
    assert "stages[0].numNodes" in output
    assert "set 1" in output
    assert not (tmp_path / "ws").exists()


@pytest.mark.parametrize(
    ("asked", "last"), [([], "markdown"), (["--json"], "json"), (["--format", "csv"], "csv"), (["--final"], "--final")]
)
def test_compare_passes_on_what_is_asked_and_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str], last: str
) -> None:
    for name in ("one", "two"):
        (tmp_path / "cycles" / name / "report").mkdir(parents=True)
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 65)

    monkeypatch.setattr(subprocess, "run", run)
    assert invoke("compare", "one", "two", "--workspace", tmp_path, *asked)[0] == 65
    assert commands[0][3:6] == [str(tmp_path), "one", "two"]
    assert commands[0][-1] == last


def test_compare_names_the_cycles_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "cycles" / "known" / "report").mkdir(parents=True)
    code, output = invoke("compare", "known", "other", "--workspace", tmp_path)
    assert code == 2
    assert "no report of other" in output
    assert "known" in output


def test_restart_from_is_read_or_refused() -> None:
    assert restart_point("grpo@2", 3) == ("grpo", 2)
    with pytest.raises(CommandError, match="did you mean grpo"):
        restart_point("grop@2", 3)
    for text in ("grpo", "grpo@", "grpo@x"):
        with pytest.raises(CommandError, match="STAGE@ITERATION, such as grpo@2"):
            restart_point(text, 3)
    with pytest.raises(CommandError, match="3 iterations"):
        restart_point("grpo@4", 3)


def test_devices_that_patches_add_are_not_spent_unseen(tmp_path: Path) -> None:
    limits = "/spec/template/spec/containers/0/resources/limits"
    stages = f"stages: [{{name: sft, patches: [{{op: add, path: {limits}, value: {{nvidia.com/gpu: 8}}}}]}}]"
    for budget, code in (("", 0), ("budget: {gpuHours: 5}\n  ", 2)):
        path = tmp_path / "cycle.yaml"
        path.write_text(QUICKSTART.read_text().replace("  iterations: 2", f"  iterations: 2\n  {budget}{stages}"))
        found, output = invoke("validate", path)
        assert found == code, output
    assert "patches have changed the devices" in output


def test_compare_says_which_cycle_was_edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sim = make_simulator()
    finish(sim)
    (tmp_path / "cycles" / "loop" / "report").mkdir(parents=True)
    edited = make_spec(iterations=1).model_copy(update={"seed": 18})
    StateFile(tmp_path, "loop").save(Cycle(metadata=Metadata(name="loop"), spec=edited, status=sim.status))
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0))
    code, output = invoke("compare", "loop", "--workspace", tmp_path)
    assert code == 0
    assert "loop: its results are not of the spec as it is now: " in output
    assert "seed: 17 → 18" in output
