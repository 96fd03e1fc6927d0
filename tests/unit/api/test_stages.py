"""The stages' definitions: what they name exists, and a stage from elsewhere is checked when it comes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.cycle_documents import spec_with
from tests.support.stage_registry import registered

from medgr2_api import stages
from medgr2_api.cycle import ResolvedSpec
from medgr2_api.data import OptionSpelling
from medgr2_api.presets import resolve
from medgr2_api.scheduling import StageRef
from medgr2_api.stages import StageDefinition, definition, input_hash, stage_names, stage_parameters
from medgr2_api.stages.definition import Iterations, Of, Read

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", stage_names())
def test_what_a_stage_waits_for_and_serves_exists(name: str) -> None:
    stage = definition(name)
    named = {maker for read in stage.reads for maker in read.makers}
    assert named | {wait.stage for wait in stage.waits} | set(stage.serves) <= set(stage_names())


@pytest.mark.parametrize("name", stage_names())
def test_a_stage_has_code(name: str) -> None:
    assert (ROOT / "jobs" / f"{definition(name).code.replace('.', '/')}.py").is_file()


@pytest.mark.parametrize("name", stage_names())
def test_parameters_stand_in_the_spec_where_the_definition_says(name: str) -> None:
    check_places(name)


#: Parameters that follow from the request, or from several parts of the spec.
MADE = {"seed", "iteration", "cycle", "retrain", "settings", "provider", "shards", "review", "student"}


def check_places(name: str) -> None:
    """A parameter has the value that stands at its place in the spec; one without a place has a default."""
    stage, spec = definition(name), resolve(spec_with({"generator.distillation": {}}))
    parameters = stage_parameters(spec, "c", name, 1).dump()
    written = spec.dump()
    defaults = {field.alias for field in stage.parameters.model_fields.values() if not field.is_required()}
    for field in parameters.keys() - MADE:
        if field not in stage.spec_paths and field not in written:
            assert field in defaults, f"{name}: {field} has no place in the spec and no default: name it in spec_paths"
            continue
        at: object = written
        for part in stage.spec_paths.get(field, field).split("."):
            assert isinstance(at, dict)
            at = at[part]
        assert parameters[field] == at, f"{name}: {field}"
    assert set(stage.spec_paths) <= {field.alias for field in stage.parameters.model_fields.values()}


class _OwnParameters(stages.StageParameters):
    least: int = 2


class _LostParameters(stages.StageParameters):
    least: int


def test_a_parameter_without_a_place_in_the_spec_has_a_default() -> None:
    audit = StageDefinition(
        "audit", "Audits.", _OwnParameters, lambda source: _OwnParameters(seed=source.seed), Iterations.LOOP
    )
    with registered(audit):
        check_places("audit")
    lost = replace(audit, parameters=_LostParameters, build=lambda source: _LostParameters(seed=source.seed, least=2))
    with registered(lost), pytest.raises(AssertionError, match="audit: least has no place in the spec and no default"):
        check_places("audit")


def test_roles_and_parts() -> None:
    report, grpo = definition("report"), definition("grpo")
    assert report.declares("measure-12")
    assert not report.declares("measure")
    assert not report.declares("lineage-1")
    assert grpo.declares("sft")
    assert not grpo.declares("sft-1")
    assert grpo.missing_inputs(["prepare", "curate"], 1) == ["sft"]
    assert definition("reward").missing_inputs(["prepare"], 0) == []
    assert definition("reward").missing_inputs(["prepare"], 1) == ["reward"]
    assert grpo.missing_parts(["rollouts.parquet", "model/a.bin"]) == ["release.json"]
    assert grpo.undeclared_parts(["models/a.bin", "model/a.bin", "log.json"]) == ["models/a.bin"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "sft"}, "one of this name already"),
        ({"name": "Audit-2"}, "at most 16 letters"),
        ({"reads": (Read("x", "later"),)}, "reads 'x' of later: register that one before"),
        ({"reads": (Read("x", "reward"),)}, "reads 'x' of reward of its own iteration, which the last one does not"),
    ],
)
def test_a_stage_that_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    with (
        pytest.raises(ValueError, match=message),
        registered(replace(definition("report"), **{"name": "audit", **changes})),
    ):
        pass


def test_where_a_stage_exists() -> None:
    audit = StageDefinition(
        "audit",
        "Audits.",
        stages.StageParameters,
        lambda source: stages.StageParameters(seed=source.seed),
        Iterations.FIRST,
    )
    with registered(replace(audit, reads=(Read("prepare", "prepare", Of.FIRST),))):
        assert StageRef(iteration=0, stage="audit").stage == "audit"
        with pytest.raises(ValueError, match="no such stage in this iteration"):
            StageRef(iteration=1, stage="audit")
    with pytest.raises(ValueError, match="Input should be 'prepare', 'generate'"):
        StageRef(iteration=0, stage="audit")


def test_a_package_brings_a_stage_by_an_entry_point(tmp_path: Path) -> None:
    (tmp_path / "audit_stage.py").write_text(
        "from medgr2_api.stages import StageDefinition, StageParameters\n"
        "from medgr2_api.stages.definition import Iterations, Read\n"
        "AUDIT = StageDefinition(\n"
        "    name='audit', sentence='Audits.', parameters=StageParameters, iterations=Iterations.LOOP,\n"
        "    build=lambda source: StageParameters(seed=source.seed), reads=(Read('candidates', 'generate'),),\n"
        "    module='audit_stage')\n"
    )
    metadata = tmp_path / "audit-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: audit\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[medgr2.stages]\naudit = audit_stage:AUDIT\n")
    program = (
        "from medgr2_api.cycle import CycleSpec; from medgr2_api.stages import stage_names; "
        "print('audit' in stage_names())"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert said.stdout == "True\n"


def test_the_table_in_the_docs_is_up_to_date() -> None:
    from medgr2_api.stages.__main__ import main

    assert main(["--check"]) == 0, "run python -m medgr2_api.stages"


def test_the_report_says_whose_options_are_spelled_uniformly() -> None:
    def settings(spelling: OptionSpelling) -> object:
        spec = resolve(spec_with())
        sources = [source.model_copy(update={"option_spelling": spelling}) for source in spec.data.sources]
        data = spec.data.model_copy(update={"sources": sources})
        return stage_parameters(spec.model_copy(update={"data": data}), "c", "report", 1).dump()["settings"]

    written, uniform = settings(OptionSpelling.AS_WRITTEN), settings(OptionSpelling.UNIFORM)
    assert isinstance(written, dict)
    assert uniform == {**written, "options spelled uniformly": "in train"}


def test_a_student_is_no_matter_of_the_first_round() -> None:
    """Who adds one to a cycle that has generated already pays for nothing of it again."""
    without, taught = (resolve(spec_with(more)) for more in ({}, {"generator.distillation": {"share": 0.4}}))

    def hashed(spec: ResolvedSpec, iteration: int) -> str:
        return input_hash("generate", stage_parameters(spec, "c", "generate", iteration), {"prepare": "0" * 64})

    assert hashed(taught, 1) == hashed(without, 1)
    assert hashed(taught, 2) != hashed(without, 2)
