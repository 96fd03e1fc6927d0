"""From YAML to a cycle, or to messages that say where, what, and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.cycle_documents import MINIMAL_TEXT, changed

from medgr2_api.stages import stage_names
from medgr2_api.validation_errors import CycleError, Problem
from medgr2_api.yaml_loader import load_cycle, locate, parse_cycle


def _problems(text: str) -> dict[str, Problem]:
    with pytest.raises(CycleError) as caught:
        parse_cycle(text, "cycle.yaml")
    return {problem.path: problem for problem in caught.value.problems}


def _with(line: str) -> str:
    """The minimal cycle with one more line under `spec`."""
    return f"{MINIMAL_TEXT}  {line}\n"


def test_the_minimal_cycle_loads(tmp_path: Path) -> None:
    path = tmp_path / "cycle.yaml"
    path.write_text(MINIMAL_TEXT)
    cycle = load_cycle(path)
    assert cycle.metadata.name == "omnimed"
    assert cycle.spec.iterations == 3
    assert cycle.spec.stages[0].gpus(cycle.spec.budget) == 8


def test_status_and_other_metadata_of_a_live_object_are_ignored() -> None:
    text = MINIMAL_TEXT.replace(
        "metadata: {name: omnimed}", "metadata: {name: omnimed, managedFields: [], creationTimestamp: null}"
    )
    assert parse_cycle(text + "status: {phase: Dancing, iteration: 7}\n", "x").status.iteration == 0


@pytest.mark.parametrize("number", ["1e-4", "1.0e-4", "0.0001", "'0.0001'", "'1e-4'", "1E-4"])
def test_numbers_as_people_write_them(number: str) -> None:
    spec = parse_cycle(
        MINIMAL_TEXT.replace("7B-Instruct}", f"7B-Instruct, sft: {{learningRate: {number}}}}}"), "x"
    ).spec
    assert spec.policy.sft.learning_rate == 1e-4


@pytest.mark.parametrize("number", ["3", "3.0", "'3'", "3e0", "0x3"])
def test_whole_numbers_as_people_write_them(number: str) -> None:
    assert parse_cycle(_with(f"seed: {number}"), "x").spec.seed == 3


@pytest.mark.parametrize("text", ["12:30", "2026-01-01", "1.2.3", "0x"])
def test_text_that_plain_pyyaml_would_turn_into_something_else(text: str) -> None:
    cycle = parse_cycle(MINIMAL_TEXT.replace("medgr2-data", text), "x")
    assert cycle.spec.workspace.persistent_volume_claim is not None
    assert cycle.spec.workspace.persistent_volume_claim.claim_name == text


@pytest.mark.parametrize(
    ("line", "path", "message"),
    [
        ("policyy: 1", "spec.policyy", "unknown field 'policyy': did you mean 'policy'?"),
        ("reward_model: 1", "spec.reward_model", "did you mean 'rewardModel'?"),
        ("klCoefficient: 1", "spec.klCoefficient", "unknown field 'klCoefficient': belongs under spec.policy.grpo"),
        ("nonsense: 1", "spec.nonsense", "unknown field 'nonsense': known here are preset, iterations"),
        ("preset: Papers", "spec.preset", "'Papers' is not one of Default, Paper, MedR1, Tiny: did you mean 'Paper'?"),
        ("preset: xyz", "spec.preset", "'xyz' is not one of Default, Paper, MedR1, Tiny"),
        ("pauseBefore: [gpro]", "spec.pauseBefore[0]", "did you mean 'grpo'?"),
        ("queueing: {queueName: yes}", "spec.queueing.queueName", "YAML reads yes as a boolean: put it in quotes"),
        ("queueing: {queueName: 017}", "spec.queueing.queueName", "YAML reads 017 as a number: put it in quotes"),
        ("preset: on", "spec.preset", "'on' is not one of"),
        ("seed: yes", "spec.seed", "must be a number, but YAML reads yes as a boolean"),
        ("seed: many", "spec.seed", "must be an integer, unable to parse string as an integer, not 'many'"),
        ("seed: -1", "spec.seed", "must be at least 0, not '-1'"),
        ("suspend: maybe", "spec.suspend", "must be true or false, not 'maybe'"),
        ("template: []", "spec.template", "must be an object ('name: value' lines), not a list"),
        ("approved: sft", "spec.approved", "must be a list ('- item' lines), not text"),
        ("restartFrom: {iteration: 1, stage: sft}", "spec.restartFrom.token", "missing. Any word not used before"),
        ("earlyStopping: {metric: null}", "spec.earlyStopping.metric", "an empty value is not one of macroAccuracy"),
        ("preset: sk-abcdefghijklmnopqrstuvwxyz", "spec.preset", "what looks like an API key is not one of"),
        ("template: {nodeSelector: {a: 1}}", "spec.template.nodeSelector.a", "must be text"),
    ],
)
def test_messages(line: str, path: str, message: str) -> None:
    problems = _problems(_with(line))
    assert list(problems) == [path]
    assert message in problems[path].message
    assert problems[path].line == len(MINIMAL_TEXT.splitlines()) + 1


def test_a_field_that_exists_in_several_places_names_the_nearest() -> None:
    wrong = MINIMAL_TEXT.replace("7B-Instruct}", "7B-Instruct, learningRate: 1}")
    assert "belongs under spec.policy.sft or spec.policy.grpo" in _problems(wrong)["spec.policy.learningRate"].message


def test_python_names_are_refused_as_the_api_server_would() -> None:
    assert "did you mean 'allowExternal'" in str(_problems(MINIMAL_TEXT.replace("allowExternal", "allow_external")))


def test_everything_wrong_is_told_at_once_in_the_order_of_the_file() -> None:
    text = MINIMAL_TEXT.replace("iterations: 3", "iterations: 30").replace("grpo, num", "grppo, num")
    text = text.replace("uri: data/test", "uri: ../test")
    with pytest.raises(CycleError) as caught:
        parse_cycle(text, "cycle.yaml")
    assert str(caught.value).splitlines() == [
        "cycle.yaml: 3 problems",
        "  spec.iterations (line 6): must be at most 20, not '30'",
        "  spec.data.benchmarks[0].uri (line 10): '../test' must not contain '..'",
        f"  spec.stages[0].name (line 14): 'grppo' is not one of {', '.join(stage_names())}: did you mean 'grpo'?",
    ]


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("", "is empty", None),
        ("# only a comment\n", "is empty", None),
        (f"{MINIMAL_TEXT}---\n{MINIMAL_TEXT}", "holds 2 YAML documents", 17),
        ("a:\n\tb: 1\n", "not valid YAML: a tab", 2),
        ("a: 1\nb: [1, 2\n", "not valid YAML", 3),
        ("a: 1\nb: c: d\n", "not valid YAML: mapping values are not allowed here", 2),
        ("a: !!python/object/apply:os.system [ls]\n", "not valid YAML: could not determine a constructor", 1),
        ("- a\n", "must be a MedGR2Cycle object", 1),
        ("just text\n", "must be a MedGR2Cycle object", 1),
        ("a: \x07\n", "holds a character that YAML forbids", None),
        ("[" * 100 + "]" * 100, "nested too deeply", 1),
        ("[" * 1000, "nested too deeply", None),
    ],
)
def test_files_that_are_no_cycle(text: str, message: str, line: int | None) -> None:
    (problem,) = _problems(text).values()
    assert message in problem.message
    assert problem.line == line


def test_a_last_separator_is_no_second_document() -> None:
    assert parse_cycle(f"---\n{MINIMAL_TEXT}---\n", "x").metadata.name == "omnimed"


def test_keys_written_twice() -> None:
    problem = _problems(MINIMAL_TEXT + "  iterations: 4\n")["spec.iterations"]
    assert (problem.message, problem.line) == ("is written twice, first on line 6", 15)


@pytest.mark.parametrize(("key", "word"), [("on", "a boolean"), ("1", "a number"), ("~", "nothing")])
def test_keys_that_are_no_text(key: str, word: str) -> None:
    problem = _problems(_with(f"template: {{nodeSelector: {{{key}: x}}}}"))[f"spec.template.nodeSelector.{key}"]
    assert f"YAML reads it as {word}" in problem.message


def test_anchors_work_and_cannot_be_abused() -> None:
    merged = _with("template: {nodeSelector: &pool {pool: gpu}, patches: [{value: {<<: *pool, more: 1}}]}")
    assert parse_cycle(merged, "x").spec.template.patches == [{"value": {"pool": "gpu", "more": 1}}]
    assert "refers to itself" in str(_problems(_with("template: {affinity: &a {b: *a}}")))
    bomb = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    for before, name in zip("abcdef", "bcdefg", strict=True):
        bomb += f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    assert "too large" in str(_problems(bomb))


def test_kind_and_version() -> None:
    wrong = MINIMAL_TEXT.replace("v1alpha1", "v2").replace("MedGR2Cycle", "Job")
    problems = _problems(wrong)
    assert problems["apiVersion"].message == "is 'medgr2.io/v2', must be 'medgr2.io/v1alpha1'"
    assert problems["kind"].line == 3
    assert "write 'kind: MedGR2Cycle'" in _problems("apiVersion: medgr2.io/v1alpha1")["kind"].message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CycleError, match="No such file"):
        load_cycle(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    with pytest.raises(CycleError, match="not UTF-8"):
        load_cycle(tmp_path / "latin.yaml")


def test_lines_for_problems_that_were_found_later() -> None:
    problems = [Problem("spec.stages[0].numProcPerNode", "no"), Problem("spec.generator.gemini", "no")]
    assert [problem.line for problem in locate(problems, MINIMAL_TEXT)] == [14, 11]


def test_json_is_yaml_too() -> None:
    text = json.dumps(changed({"spec.template.patches": [{"value": "😀"}]}))
    assert "\\ud83d" in text
    assert parse_cycle(text, "cycle.json").spec.template.patches == [{"value": "😀"}]
