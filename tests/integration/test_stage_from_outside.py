"""A stage that the product does not know: defined here, planned, hashed and run like its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from medgr2_api.stage_contract import ArtifactRef, StageRequest, StageResult
from medgr2_api.stages import StageDefinition, StageParameters, input_hash, stage_parameters
from medgr2_api.stages.definition import Iterations, Of, Read, Source
from medgr2_jobs.runner import attempt, main
from medgr2_jobs.runner.context import StageContext, StageOutcome
from medgr2_jobs.store.rows import TableRow
from medgr2_jobs.store.rows.candidates import Candidate
from medgr2_operator.plan.spec_cache import cached_spec
from medgr2_operator.plan.types import StageKey
from tests.support import jobs_fixtures
from tests.support.cycle_specs import make_spec
from tests.support.rows import row_of
from tests.support.simulator_helpers import finish, make_simulator, until
from tests.support.stage_registry import registered


class CensusParameters(StageParameters):
    """What to count."""

    candidates: int
    """How many candidates were asked for."""
    least: int = 2
    """Modalities with fewer candidates are left out."""


def _build(source: Source) -> CensusParameters:
    return CensusParameters(seed=source.seed, candidates=source.spec.generator.candidates)


CENSUS = StageDefinition(
    name="census",
    sentence="Counts the candidates of each modality, over all iterations.",
    parameters=CensusParameters,
    build=_build,
    iterations=Iterations.LOOP,
    spec_paths={"candidates": "generator.candidates"},
    reads=(Read("candidates", "generate"), Read("earlier", "generate", Of.EVERY)),
    publishes=("census.parquet",),
    module=__name__,
)


@dataclass(frozen=True, slots=True)
class Count(TableRow):
    """Candidates of a modality."""

    TABLE = "census"
    VERSION = 1

    modality: str
    candidates: int


def run(ctx: StageContext[CensusParameters]) -> StageOutcome:
    """Runs the stage."""
    counts: dict[str, int] = {}
    for t in range(1, ctx.request.iteration + 1):
        for row in ctx.input(f"earlier-{t}").rows(Candidate):
            counts[row.modality] = counts.get(row.modality, 0) + 1
    ctx.writer.table(Count, [Count(*item) for item in sorted(counts.items()) if item[1] >= ctx.parameters.least])
    return StageOutcome(counters={"modalities": len(counts)})


def candidate(number: int, modality: str) -> Candidate:
    return row_of(Candidate, triplet_id=f"t{number}", iteration=1, modality=modality)


@pytest.fixture(autouse=True)
def _known() -> Iterator[None]:
    assert sys.modules[__name__].run is run, "the runner finds this very module"
    with registered(CENSUS):
        yield


def test_it_is_planned_with_its_inputs_and_its_hash() -> None:
    w = make_simulator(iterations=2, seed=4242)
    asked = until(w, "census", 2).request
    assert {role: (ref.stage, ref.iteration) for role, ref in asked.inputs.items()} == {
        "candidates": ("generate", 2),
        "earlier-1": ("generate", 1),
        "earlier-2": ("generate", 2),
    }
    parameters = CensusParameters.model_validate(asked.parameters)
    assert (parameters.candidates, parameters.least) == (50_000, 2)
    assert asked.input_hash == input_hash(
        "census", parameters, {role: ref.output_digest for role, ref in asked.inputs.items()}
    )
    finish(w)
    assert {f"{s.name}@{s.iteration}" for s in w.status.stages} >= {"census@1", "census@2", "report@2"}


def test_the_spec_switches_it_off_and_its_maker_takes_it_along() -> None:
    for off in ("census", "generate"):
        spec = make_spec(seed=4243, stages=[{"name": off, "enabled": False}])
        assert StageKey(1, "census") not in cached_spec("c", spec).graph(2)


def request(root: Path, inputs: dict[str, ArtifactRef], **parameters: Any) -> StageRequest:
    return jobs_fixtures.request("census", 1, {"seed": 1, "candidates": 5, **parameters}, inputs)


@pytest.fixture
def candidates(tmp_path: Path) -> ArtifactRef:
    rows = [candidate(number, modality) for number, modality in enumerate(["CT", "MR", "CT", "CT", "US", "US"])]
    return jobs_fixtures.publish(tmp_path, "generate", {Candidate: rows}, iteration=1)


def test_the_runner_runs_it(tmp_path: Path, candidates: ArtifactRef) -> None:
    asked = request(tmp_path, {"candidates": candidates, "earlier-1": candidates})
    made = jobs_fixtures.run(tmp_path, asked)
    assert made.rows(Count) == [Count("CT", 3), Count("US", 2)]
    assert made.manifest.counters == {"modalities": 3}
    assert (made.manifest.stage, made.manifest.inputs["earlier-1"]) == ("census", candidates.output_digest)
    assert main.execute(asked, tmp_path) == 0, "it is found again"


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (["earlier-1"], "inputs of census@1: 'candidates' is missing"),
        (["candidates"], "inputs of census@1: 'earlier' is missing"),
        (["candidates", "earlier-1", "reward"], "inputs of census@1: 'reward' is not declared"),
    ],
)
def test_it_is_given_what_it_declares(tmp_path: Path, candidates: ArtifactRef, roles: list[str], message: str) -> None:
    result = ended(tmp_path, request(tmp_path, dict.fromkeys(roles, candidates)))
    assert (result.exit_code, result.reason) == (78, "ConfigError")
    assert message in result.message


def ended(root: Path, asked: StageRequest) -> StageResult:
    return attempt.run_guarded(asked, root, lambda: main._run(asked, root, main.threading.Event(), {}))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda ctx: ctx.input("scores"), "reads input 'scores', which its definition does not declare"),
        (lambda ctx: ctx.has_input("earlier"), "reads input 'earlier', which its definition does not declare"),
        (lambda ctx: None, "census.parquet is missing"),
        (lambda ctx: ctx.writer.path("notes.txt").write_text("x"), "notes.txt is not declared"),
    ],
)
def test_it_does_what_it_declares(
    tmp_path: Path, candidates: ArtifactRef, monkeypatch: pytest.MonkeyPatch, act: Any, message: str
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "run", lambda ctx: (act(ctx), StageOutcome())[1])
    result = ended(tmp_path, request(tmp_path, {"candidates": candidates, "earlier-1": candidates}))
    assert result.exit_code == 78
    assert message in result.message


def test_parameters_are_checked(tmp_path: Path, candidates: ArtifactRef) -> None:
    asked = request(tmp_path, {"candidates": candidates, "earlier-1": candidates})
    wrong = asked.model_copy(update={"parameters": {**asked.parameters, "most": 3}})
    assert "parameters of stage census" in ended(tmp_path, wrong).message
    default = stage_parameters(make_spec(), "c", "report", 1)
    assert not isinstance(default, CensusParameters)
