"""`medgr2 plan` on a workspace in which the cycle has run: what would run again, and because of which field."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from tests.support.run_fixtures import CYCLE, RunWorkspace
from tests.support.stage_registry import replaced
from typer.testing import CliRunner

from medgr2_api import paths
from medgr2_api.cycle import Cycle
from medgr2_api.hashing import Since
from medgr2_api.policy import ResolvedGRPO
from medgr2_api.presets import resolve
from medgr2_api.stages import definition, stage_parameters
from medgr2_api.stages.grpo import GRPOParameters
from medgr2_api.status import CycleStatus
from medgr2_operator.cli.app import app
from medgr2_operator.cli.plan_preview import Forecast, _differences, forecast
from medgr2_operator.local.state import StateFile
from medgr2_operator.plan.spec_cache import cached_spec
from medgr2_operator.plan.types import StageKey


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace of a finished cycle, with the real runner's manifests."""
    workspace = RunWorkspace(tmp_path_factory.mktemp("finished"))
    code, output = workspace.run()
    assert code == 0, output
    return workspace.root / "ws"


def forecasts(workspace: Path, *, forgotten: bool = False, **changes: Any) -> dict[str, Forecast]:
    """What would happen to each stage of the cycle with another spec; forgotten: its state is gone."""
    cycle = Cycle.model_validate({**CYCLE, "spec": {**CYCLE["spec"], **changes}})
    stored = StateFile(workspace, cycle.metadata.name).load()
    assert stored is not None
    status = CycleStatus() if forgotten else stored.status
    graph = cached_spec(cycle.metadata.name, cycle.spec).graph(cycle.spec.iterations)
    return {str(key): seen for key, seen in forecast(cycle, status, graph, workspace).items()}


def test_nothing_changed(finished: Path) -> None:
    assert {seen.what for seen in forecasts(finished).values()} == {"done in this cycle"}
    found = forecasts(finished, forgotten=True)
    assert {seen.what.partition(":")[0] for seen in found.values()} == {"reused"}
    assert found["grpo@2"].what == "reused: made by loop, iteration 2"


def test_the_field_that_runs_a_stage_again_is_named(finished: Path) -> None:
    found = forecasts(finished, forgotten=True, policy={**CYCLE["spec"]["policy"], "grpo": {"klCoefficient": 0.5}})
    assert found["grpo@1"].what == "runs again: policy.grpo.klCoefficient: 0 → 0.5"
    assert found["sft@1"].what.startswith("reused")
    assert found["relabel@1"].what == "runs: its input policy (grpo@1) is not there yet"


def test_the_command_says_it(finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "cycle.yaml"
    spec = {**CYCLE["spec"], "policy": {**CYCLE["spec"]["policy"], "sft": {"numEpochs": 2}}}
    file.write_text(yaml.safe_dump({**CYCLE, "spec": spec}))
    result = CliRunner(env={"COLUMNS": "400"}).invoke(app, ["plan", str(file), "--workspace", str(finished)])
    assert result.exit_code == 0
    assert "policy.sft.numEpochs: 1 → 2" in result.output


@pytest.mark.parametrize(
    ("stage", "changes", "why"),
    [
        ("generate@1", {"generator": {"scripted": {"errorRate": 0.3}}}, "generator.scripted.errorRate: 0.1 → 0.3"),
        ("generate@1", {"stages": [{"name": "generate", "shards": 1}]}, "stages[generate].shards: 2 → 1"),
        ("prepare@0", {"rewardModel": {"baseModel": "models/r"}}, "rewardModel.baseModel: builtin://"),
        ("curate@1", {"curation": {"balance": {"by": ["modality"]}}}, 'curation.balance: none → {"by":["modality"]'),
        ("curate@1", {"curation": {"selection": {"strategy": "All"}}}, "curation.selection.strategy: Threshold → All"),
        ("evaluate@0", {"evaluation": {"controls": []}}, "evaluation.controls: ["),
    ],
)
def test_every_part_of_the_spec(finished: Path, stage: str, changes: dict[str, Any], why: str) -> None:
    assert f"runs again: {why}" in forecasts(finished, forgotten=True, **changes)[stage].what


def test_what_is_done_stays_and_what_differs_is_said(finished: Path) -> None:
    seen = forecasts(finished, policy={**CYCLE["spec"]["policy"], "sft": {"numEpochs": 2}})["sft@2"]
    assert seen.reused
    assert seen.what == ("done with other parameters: policy.sft.numEpochs: 1 → 2; --restart-from sft@1 applies it")


def test_what_is_reached_in_another_way_is_the_same(finished: Path) -> None:
    for changes in ({"failurePolicy": {}}, {"template": {"image": "x"}}, {"maxParallelStages": 1}):
        assert {seen.what for seen in forecasts(finished, **changes).values()} == {"done in this cycle"}


def test_another_version_of_the_code(finished: Path) -> None:
    report = definition("report")
    with replaced(replace(report, code_version=99)):
        what = forecasts(finished, forgotten=True)["report@1"].what
    assert what == f"runs again: the stage's code: version {report.code_version} → 99"


class LaterGRPO(ResolvedGRPO):
    """A version that brings a field which a preset owns."""

    top_p: Annotated[float, Since(1.0)]


class LaterParameters(GRPOParameters):
    grpo: LaterGRPO


def test_a_field_that_came_later_is_named_only_where_it_is_why() -> None:
    resolved = resolve(Cycle.model_validate(CYCLE).spec)
    written = stage_parameters(resolved, "loop", "grpo", 1).dump()
    made = {"stage": "grpo", "codeVersion": definition("grpo").code_version, "parameters": written, "inputs": {}}

    def differences(**changes: float) -> list[str]:
        later = LaterParameters.model_validate({**written, "grpo": {**written["grpo"], **changes}})
        return list(_differences(made, later, {}))

    with replaced(replace(definition("grpo"), parameters=LaterParameters)):
        assert differences(topP=0.9) == ["policy.grpo.topP: 1 → 0.9"]
        assert differences(topP=1.0, klCoefficient=0.5) == ["policy.grpo.klCoefficient: 0 → 0.5"]


def test_another_input_and_a_restart(finished: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "ws"
    shutil.copytree(finished, workspace, symlinks=True)
    link = workspace / paths.iteration_link("loop", 1, "grpo")
    manifest = link.resolve() / paths.MANIFEST
    made = json.loads(manifest.read_text())
    manifest.unlink()
    made["inputs"]["curate"] = "f" * 64
    other = link.resolve().with_name("e" * 64)
    other.mkdir()
    (other / paths.MANIFEST).write_text(json.dumps(made))
    link.unlink()
    link.symlink_to(other)
    what = forecasts(workspace, forgotten=True)["grpo@1"].what
    assert what.startswith(f"runs again: input curate: {'f' * 12} → ")

    cycle = Cycle.model_validate(CYCLE)
    stored = StateFile(workspace, "loop").load()
    assert stored is not None
    records = [
        record.model_copy(update={"state": "Pending", "token": "r1", "input_hash": "", "output_digest": ""})
        if (record.name, record.iteration) == ("grpo", 1)
        else record
        for record in stored.status.stages
    ]
    graph = cached_spec("loop", cycle.spec).graph(2)
    seen = forecast(cycle, stored.status.model_copy(update={"stages": records}), graph, workspace)
    assert seen[StageKey(1, "grpo")].what == "runs: restarted (token r1)"
