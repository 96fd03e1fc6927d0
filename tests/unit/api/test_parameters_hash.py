"""Equal meaning, equal hash; another meaning, another hash. Everything that is reused hangs on this."""

from __future__ import annotations

import json
from typing import Annotated, Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError
from tests.support.cycle_documents import changed, spec_with

from medgr2_api.cycle import Cycle, CycleSpec
from medgr2_api.hashing import Since, canonical_json, meaning, normalise, sha256_of
from medgr2_api.policy import ResolvedGRPO
from medgr2_api.presets import resolve
from medgr2_api.stages import StageParameters, input_hash, stage_names, stage_parameters
from medgr2_api.stages.grpo import GRPOParameters
from medgr2_api.yaml_loader import parse_cycle

STAGES = stage_names()
TRAINER = "policy.grpo.trainer"


def hashes(spec: CycleSpec) -> dict[str, str]:
    """Every stage's input hash in iteration 1."""
    resolved = resolve(spec)
    return {
        stage: input_hash(stage, stage_parameters(resolved, "c", stage, 1), {"prepare": "0" * 64}) for stage in STAGES
    }


def differing(first: dict[str, Any], second: dict[str, Any]) -> set[str]:
    one, two = hashes(spec_with(first)), hashes(spec_with(second))
    return {stage for stage in STAGES if one[stage] != two[stage]}


ENGINE, VLLM = "policy.engine", {"model": "org/vlm"}


@pytest.mark.parametrize(
    ("args", "counts"),
    [
        (["--max-num-seqs=64", "--gpu-memory-utilization", "0.8", "-tp", "2", "--enforce-eager"], False),
        (["--quantization=fp8"], True),
        (["-q", "fp8"], True),
        (["--kv_cache_dtype", "fp8"], True),
        (["--enforce-eager", "--dtype", "float16", "--max-num-seqs=64"], True),
        (["--revision=v2"], True),
    ],
)
def test_of_vllm_s_arguments_those_count_that_change_answers(args: list[str], counts: bool) -> None:
    asked = {"relabel", "evaluate"}
    assert differing({ENGINE: {"vllm": {}}}, {ENGINE: {"vllm": {"args": args}}}) >= (asked if counts else set())
    assert bool(differing({ENGINE: {"vllm": {}}}, {ENGINE: {"vllm": {"args": args}}})) is counts
    generator = {"generator": {"vllm": VLLM}}, {"generator": {"vllm": {**VLLM, "args": args}}}
    assert differing(*generator) == ({"generate"} if counts else set())


def test_an_argument_of_vllm_s_is_one_however_it_is_written() -> None:
    ways = (["-q", "fp8"], ["--quantization=fp8"], ["--quantization=awq", "--quantization", "fp8", "--max-num-seqs=1"])
    for way in ways[1:]:
        assert differing({ENGINE: {"vllm": {"args": ways[0]}}}, {ENGINE: {"vllm": {"args": way}}}) == set()


@pytest.mark.parametrize(
    ("path", "same"),
    [
        ("curation.selection.threshold", [3, 3.0, "3", "3.0"]),
        ("policy.sft.learningRate", [1e-4, "1e-4", 0.0001, "0.0001", "1.0E-4"]),
        ("policy.grpo.numGenerations", [4, 4.0, "4"]),
        (TRAINER, [{"a": 3}, {"a": 3.0}, {"a": "3"}, {"a": "3.0"}]),
        (TRAINER, [{"a": 1e-4}, {"a": "1e-4"}, {"a": 0.0001}, {"a": "0.0001"}, {"a": "1E-4"}]),
        (TRAINER, [{"a": 1, "b": {"c": 2, "d": [3]}}, {"b": {"d": (3.0,), "c": 2}, "a": "1"}]),
        ("policy.grpo", [None, {}, {"klCoefficient": 0.001}, {"numGenerations": 8, "trainer": {}}]),
        (
            "policy.sft",
            [{}, {"lora": {"rank": 64}}, {"lora": {"rank": 64, "alpha": 128, "dropout": 0}}, {"numEpochs": 1}],
        ),
        ("curation.selection", [{}, {"strategy": "Threshold"}, {"threshold": 3}]),
        ("preset", [None, "Default"]),
        ("answerFormat", [None, "Letter"]),
        ("data.split", [{}, {"by": "Image", "validationFraction": "0.1", "testFraction": 0}]),
    ],
)
def test_one_meaning_one_hash(path: str, same: list[Any]) -> None:
    specs = [spec_with({path: value} if value is not None else {}) for value in same]
    assert len({tuple(hashes(spec).values()) for spec in specs}) == 1


def test_what_follows_from_the_format_may_be_written_out() -> None:
    source = {"name": "train", "format": "DICOM", "uri": "d"}
    written = source | {"role": "Images", "allowExternal": False}
    assert differing({"data.sources": [source]}, {"data.sources": [written]}) == set()
    assert differing({"data.sources": [source]}, {"data.sources": [written | {"role": "Seed"}]}) == {"prepare"}


@pytest.mark.parametrize(
    ("path", "value", "stages"),
    [
        ("policy.sft.learningRate", 2e-4, {"sft"}),
        ("policy.grpo.klCoefficient", 0.002, {"grpo"}),
        (TRAINER, {"a": True}, {"grpo"}),
        ("curation.selection", {"strategy": "All"}, {"curate"}),
        ("generator.candidates", 7, {"generate"}),
        ("generator.gemini.model", "gemini-4", {"generate"}),
        ("rewardModel.grades", {"original": 9}, {"prepare", "reward", "preferences"}),
        ("rewardModel.baseModel", "another", {"prepare"}),
        ("data.maxPixels", 1000, {"prepare"}),
        ("preset", "MedR1", {"grpo", "report"}),
        ("seed", 18, set(STAGES)),
    ],
)
def test_another_meaning_another_hash(path: str, value: Any, stages: set[str]) -> None:
    assert differing({}, {path: value}) == stages


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("template.image", "registry/medgr2:2"),
        ("template.env", [{"name": "A", "value": "b"}]),
        ("stages", [{"name": "sft", "resources": {"limits": {"nvidia.com/gpu": 4}}, "image": "x", "queueName": "q"}]),
        ("generator.concurrency", 3),
        ("generator.gemini.apiKeySecretRef", {"name": "another", "key": "k"}),
        ("budget", {"gpuHours": 5}),
        ("iterations", 9),
        ("suspend", True),
        ("queueing", {"queueName": "gpu"}),
        ("workspace.persistentVolumeClaim.claimName", "other"),
    ],
)
def test_where_and_how_it_runs_repeats_no_work(path: str, value: Any) -> None:
    assert differing({}, {path: value}) == set()


def test_an_address_repeats_no_work() -> None:
    first, second = (
        {"generator": {"openAI": {"model": "m", "baseURL": f"http://{host}/v1"}}} for host in ("a.svc:8000", "b")
    )
    assert differing(first, second) == set()
    second["generator"]["openAI"]["apiKeySecretRef"] = {"name": "s", "key": "k"}
    assert differing(first, second) == set()
    second["generator"]["openAI"]["model"] = "n"
    assert differing(first, second) == {"generate"}


def test_inputs_and_token_count() -> None:
    parameters = stage_parameters(resolve(spec_with()), "c", "sft", 1)
    base = input_hash("sft", parameters, {"curate": "1"})
    assert base == input_hash("sft", parameters, {"curate": "1"}, token="")
    others = [
        input_hash("sft", parameters, {"curate": "1.0"}),  # text, though it looks like the same number
        input_hash("sft", parameters, {"curate": "2"}),
        input_hash("sft", parameters, {"curate": "1"}, token="1"),
        input_hash("sft", parameters, {"curate": "1"}, token="01"),
    ]
    assert len({base, *others}) == 5


class _LaterGRPO(ResolvedGRPO):
    """A version that brings a field which a preset owns."""

    top_p: Annotated[float, Field(gt=0, le=1), Since(1.0)]


class _LaterParameters(GRPOParameters):
    grpo: _LaterGRPO


def test_a_preset_owned_field_that_came_later_changes_no_hash_where_it_says_what_was_done_before() -> None:
    before = stage_parameters(resolve(spec_with()), "c", "grpo", 1)
    written = before.dump()

    def later(**top_p: float) -> StageParameters:
        return _LaterParameters.model_validate({**written, "grpo": {**written["grpo"], **top_p}})

    inputs = {"prepare": "0" * 64}
    assert input_hash("grpo", later(topP=1), inputs) == input_hash("grpo", before, inputs)
    assert input_hash("grpo", later(topP=0.9), inputs) != input_hash("grpo", before, inputs)
    assert meaning(later(topP=1), defaults=True)["grpo"]["topP"] == 1, "people see it"
    with pytest.raises(ValidationError, match=r"grpo\.topP"):  # the preset's table has to have it
        later()


def test_names_that_look_like_numbers_stay_names() -> None:
    assert differing({"policy.baseModel": "1"}, {"policy.baseModel": "1.0"}) == {"prepare"}
    assert canonical_json({"b": 3.0, "a": "3.0"}) == '{"a":"3.0","b":3}'
    assert sha256_of({"version": "2.10"}) != sha256_of({"version": "2.1"})


@pytest.mark.parametrize(
    ("given_value", "normal"),
    [
        ("1e-4", 0.0001),
        (" 2 ", 2),
        ("-3.0", -3),
        ("12345678901234567890", 12345678901234567890),
        ("1e999", "1e999"),
        ("007", "007"),
        ("1.2.3", "1.2.3"),
        ("true", "true"),
        (True, True),
        (None, None),
        ({2: 1.0, "1": [2.0, "x"]}, {"1": [2, "x"], "2": 1}),
    ],
)
def test_normal_form(given_value: Any, normal: Any) -> None:
    assert normalise(given_value) == normal
    assert type(normalise(given_value)) is type(normal)
    assert normalise(normal) == normal


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(
        ["1e-4", "3.0", "3", "on", "no", "~", "null", "12:30", "0x1f", "010", "1_000", "2026-01-01", "x: y"]
    )
    | st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abcxyz_", min_size=1, max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
trainers = st.dictionaries(st.text("abcxyz_", min_size=1, max_size=6), json_values, max_size=4)
positive = st.floats(1e-9, 1e3)
specs = st.fixed_dictionaries(
    {},
    optional={
        "preset": st.sampled_from(["Default", "Paper", "MedR1", "Tiny"]),
        "seed": st.integers(0, 2**31 - 1),
        "answerFormat": st.sampled_from(["Letter", "OptionText"]),
        "policy.sft.learningRate": positive,
        "policy.sft.lora": st.fixed_dictionaries({"rank": st.integers(0, 64)}, optional={"dropout": st.floats(0, 0.9)}),
        "policy.sft.trainer": trainers,
        "policy.grpo.trainer": trainers,
        "policy.grpo.klCoefficient": st.floats(0, 1),
        "policy.initFrom": st.sampled_from(["Base", "Previous"]),
        "rewardModel.training.retrainTrainer": trainers,
        "rewardModel.grades.perturbed": st.floats(-6, 10),
        "curation.selection": st.sampled_from([{"strategy": "All"}, {"strategy": "TopK", "k": 5}, {"threshold": 2.5}]),
        "data.maxPixels": st.integers(784, 10**6),
        "data.sources": st.lists(
            st.sampled_from([{"format": "Phantom", "phantom": {}}, {"format": "DICOM", "uri": "0x10"}]),
            min_size=1,
            max_size=3,
        ).map(lambda items: [{**item, "name": f"s{index}"} for index, item in enumerate(items)]),
        "generator.sampling.temperature": st.floats(0, 2),
        "template.patches": trainers.map(lambda value: [{"value": value}]),
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values=specs, sort=st.booleans(), style=st.sampled_from(["flow", "block", "json"]))
def test_a_spec_survives_yaml(values: dict[str, Any], sort: bool, style: str) -> None:
    cycle = Cycle.model_validate(changed({f"spec.{path}": value for path, value in values.items()}))
    if style == "json":
        again = parse_cycle(json.dumps(cycle.dump(), sort_keys=sort), "dumped")
        assert again.spec == cycle.spec
    else:  # PyYAML leaves the quotes of "1e-4" away; for options that means the same
        text = yaml.safe_dump(cycle.dump(), sort_keys=sort, default_flow_style=style == "flow", allow_unicode=True)
        again = parse_cycle(text, "dumped")
    assert hashes(again.spec) == hashes(cycle.spec)
    resolved = resolve(cycle.spec)
    assert resolve(resolved) == resolved
