"""What this version cannot do is refused before anything runs, with a way out."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.cycle_documents import spec_with

from medgr2_api.stages import stage_names
from medgr2_api.unsupported import GAPS, OWNED_TRAINER_OPTIONS, TRAINERS, unsupported

TINY = "builtin://tiny-qwen2.5-vl"
SUPPORTED: dict[str, Any] = {
    "generator": {"openAI": {"model": "m", "baseURL": "http://x"}},
    "policy": {"baseModel": TINY},
    "rewardModel": {"baseModel": "models/qwen"},
}


def _paths(values: dict[str, Any], local: bool = False) -> list[str]:
    return [problem.path for problem in unsupported(spec_with(SUPPORTED | values), local)]


def test_what_is_supported_passes() -> None:
    assert _paths({}, local=True) == []


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"stages": [{"name": "sft"}, {"name": "grpo", "shards": 2}]}, "spec.stages[1]"),
        ({"rewardModel": {"baseModel": "builtin://another"}}, "spec.rewardModel.baseModel"),
        ({"policy": {"baseModel": "builtin://another"}}, "spec.policy.baseModel"),
        ({"rewardModel": {"baseModel": TINY, "checkpoint": TINY}}, "spec.rewardModel.checkpoint"),
    ],
)
def test_gaps(values: dict[str, Any], path: str) -> None:
    assert _paths(values) == [path]


INSIDE, OUTSIDE = SUPPORTED["generator"], {"openAI": {"model": "m", "baseURL": "https://api.example.org"}}


@pytest.mark.parametrize(
    ("generator", "distillation", "path"),
    [
        (INSIDE, {}, None),
        (INSIDE, {"termsAllowTraining": True}, None),
        (OUTSIDE, {"termsAllowTraining": True}, None),
        (OUTSIDE, {}, "spec.generator.distillation.termsAllowTraining"),
        (OUTSIDE, {"termsAllowTraining": False}, "spec.generator.distillation.termsAllowTraining"),
        (INSIDE, {"termsAllowTraining": False}, "spec.generator.distillation.termsAllowTraining"),
        (INSIDE, {"baseModel": "builtin://another"}, "spec.generator.distillation.baseModel"),
        ({"vllm": {"model": "g"}}, {}, "spec.generator.distillation"),
    ],
)
def test_who_may_be_learnt_from(generator: dict[str, Any], distillation: dict[str, Any], path: str | None) -> None:
    """An outside provider's terms have to be read; and what cannot be served yet is refused."""
    found = _paths({"generator": {**generator, "distillation": distillation}})
    assert found == ([path] if path else [])


ADAPTERS = {"sft": {"lora": {"rank": 8}}, "grpo": {"lora": {"rank": 8}}}
ON_SITE = {"server": {"baseURL": "http://vllm.models.svc:8000"}}


@pytest.mark.parametrize(
    ("policy", "paths"),
    [
        ({"engine": {"vllm": {}}}, []),
        ({"engine": ON_SITE, **ADAPTERS}, []),
        ({"engine": {"vllm": {}}, "baseModel": TINY}, ["spec.policy.engine"]),
        (
            {"engine": {"server": {"baseURL": "https://api.example.org"}}, **ADAPTERS},
            ["spec.policy.engine.server.baseURL"],
        ),
        ({"engine": ON_SITE, **ADAPTERS, "sft": {"lora": {"rank": 0}}}, ["spec.policy.sft.lora"]),
        ({"engine": ON_SITE, **ADAPTERS, "grpo": {"lora": {"rank": 0}}}, ["spec.policy.grpo.lora"]),
    ],
)
def test_who_may_answer_for_the_policy(policy: dict[str, Any], paths: list[str]) -> None:
    """A server outside would be shown every image, and none that runs already can be given a whole model."""
    assert _paths({"policy": {"baseModel": "models/qwen", **policy}}) == paths


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"stages": [{"name": "grpo", "numNodes": 2, "numProcPerNode": 8}]}, "spec.stages[0].numNodes"),
        ({"generator": {"vllm": {"model": "g"}}}, "spec.generator.vllm"),
    ],
)
def test_what_needs_a_cluster_is_refused_by_the_local_runner_only(values: dict[str, Any], path: str) -> None:
    cluster = {"queueing": {"queueName": "q"}, "workspace": {"persistentVolumeClaim": {"claimName": "c"}}}
    assert _paths(cluster | values) == []
    assert _paths(cluster | values, local=True) == [path]


@pytest.mark.parametrize("setting", [{"numNodes": 2}, {"numProcPerNode": 8}, {"deepspeed": "Zero2"}])
def test_only_trainings_run_in_several_processes(setting: dict[str, Any]) -> None:
    for name in stage_names():
        found = _paths({"stages": [{"name": name, **setting}]})
        assert found == ([] if name in ("reward", "sft", "grpo") else ["spec.stages[0]"])


def test_the_reward_model_is_not_shared_out() -> None:
    assert _paths({"stages": [{"name": "reward", "deepspeed": "Zero3"}]}) == ["spec.stages[0]"]
    assert _paths({"stages": [{"name": "grpo", "deepspeed": "Zero3"}]}, local=True) == []


def test_settings_of_the_built_in_model_are_part_of_its_name() -> None:
    assert _paths({"policy": {"baseModel": f"{TINY}?steps=4&images=32"}}) == []


def test_messages_say_what_to_do() -> None:
    for gap in GAPS:
        message = gap.message.format(value="x")
        assert "{" not in message
        assert any(word in message for word in ("use", "leave it out", "set 1", "run `vllm", "copy")), message


GEMINI = {"generator": {"gemini": {"model": "g", "apiKeySecretRef": {"name": "s", "key": "k"}}}}
SCANS = {"name": "scans", "format": "DICOM", "uri": "scans"}
PICTURES = {"name": "pictures", "format": "OmniMedVQA", "uri": "pictures"}


@pytest.mark.parametrize(
    ("generator", "sources", "refused"),
    [
        (GEMINI, [SCANS], True),
        (GEMINI, [{**SCANS, "format": "ImageFolder"}], True),
        (GEMINI, [{**PICTURES, "allowExternal": False}], True),
        (GEMINI, [SCANS, PICTURES], False),
        (GEMINI, [{**SCANS, "allowExternal": True}], False),
        ({"generator": {"openAI": {"model": "m", "baseURL": "https://api.openai.com/v1"}}}, [SCANS], True),
        ({"generator": {"openAI": {"model": "m", "baseURL": "http://vllm.models.svc:8000/v1"}}}, [SCANS], False),
        (
            {"generator": {"openAI": {"model": "m", "baseURL": "https://gpu.hospital.org/v1", "external": False}}},
            [SCANS],
            False,
        ),
        ({"generator": {"openAI": {"model": "m", "baseURL": "http://localhost/v1", "external": True}}}, [SCANS], True),
        ({"generator": {"vllm": {"model": "m"}}}, [SCANS], False),
    ],
)
def test_images_that_may_not_leave_are_not_asked_about_outside(
    generator: dict[str, Any], sources: list[dict[str, Any]], refused: bool
) -> None:
    found = _paths(generator | {"data.sources": sources})
    assert found == ["spec.data.sources"] * refused


WANDB = {"mode": "Online", "apiKeySecretRef": {"name": "s", "key": "k"}}


@pytest.mark.parametrize(
    ("tracking", "refused"),
    [
        ({"mlflow": {}, "wandb": {}}, {}),
        ({"mlflow": {"trackingURI": "http://mlflow.tracking.svc:5000"}}, {}),
        ({"mlflow": {"trackingURI": "https://mlflow.example.com"}}, {"mlflow.trackingURI": "outside the site"}),
        ({"mlflow": {"trackingURI": "https://mlflow.example.com"}, "allowExternal": True}, {}),
        (
            {
                "mlflow": {"trackingURI": "http://mlflow.example.com", "tokenSecretRef": {"name": "s", "key": "k"}},
                "allowExternal": True,
            },
            {"mlflow.trackingURI": "use https"},
        ),
        ({"wandb": WANDB}, {"wandb.baseURL": "outside the site"}),
        ({"wandb": WANDB, "allowExternal": True}, {}),
        ({"wandb": {**WANDB, "baseURL": "http://wandb.internal"}}, {}),
    ],
)
def test_figures_leave_the_site_only_where_the_spec_says_so(tracking: dict[str, Any], refused: dict[str, str]) -> None:
    found = {problem.path: problem.message for problem in unsupported(spec_with(SUPPORTED | {"tracking": tracking}))}
    assert found.keys() == {f"spec.tracking.{field}" for field in refused}
    assert all(part in found[f"spec.tracking.{field}"] for field, part in refused.items())


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("option", ["output_dir", "seed", "learning_rate", "max_length", "push_to_hub", "report_to"])
def test_options_of_the_contract_are_refused_in_every_trainer(trainer: str, option: str) -> None:
    (problem,) = unsupported(spec_with(SUPPORTED | {trainer: {option: 1, "tf32": True, "max_steps": 5}}))
    assert problem.path == f"spec.{trainer}.{option}"
    assert OWNED_TRAINER_OPTIONS[option] in problem.message


def test_the_precision_of_the_policy_has_a_field_of_its_own() -> None:
    refused = {"policy.sft.trainer": {"bf16": True}, "policy.grpo.trainer": {"bf16": False}}
    problems = unsupported(spec_with(SUPPORTED | refused | {"rewardModel.training.trainer": {"bf16": True}}))
    assert [problem.path for problem in problems] == [f"spec.{path}.bf16" for path in refused]
    assert {problem.message for problem in problems} == {"not to be set here: use spec.policy.loading.precision"}


NF4, SAME = {"quantization": "NF4"}, {"rank": 16}


@pytest.mark.parametrize(
    ("loading", "sft", "grpo", "stages", "said"),
    [
        (NF4, SAME, SAME, [], ""),
        (NF4, {"rank": 0}, SAME, [], "sft trains all weights"),
        (NF4, SAME, {"rank": 0}, [], "grpo trains all weights"),
        (NF4, SAME, {"rank": 32}, [], "grpo would merge the adapters before and train others"),
        (NF4, SAME, {"rank": 32}, [{"name": "grpo", "enabled": False}], ""),
        (NF4, SAME, SAME, [{"name": "sft", "deepspeed": "Zero3"}], "Zero3 shares out what learns"),
        (NF4, SAME, SAME, [{"name": "grpo", "deepspeed": "Zero2"}], "Zero2 shares out what learns"),
        ({**NF4, "engine": {"vllm": {}}}, SAME, SAME, [], "would sample for grpo from other weights than learn"),
        ({**NF4, "engine": {"vllm": {"rolloutGPUs": 0}}}, SAME, SAME, [], ""),
        ({"freezeVisionTower": True}, SAME, SAME, [], "adapters never change the vision tower"),
        ({"freezeVisionTower": False}, SAME, SAME, [], "adapters never change the vision tower"),
        ({"freezeVisionTower": False}, {"rank": 0}, SAME, [], ""),
        ({}, SAME, {"rank": 0}, [{"name": "grpo", "enabled": False}], ""),
        ({"attention": "FlashAttention2", "precision": "Float32"}, SAME, SAME, [], "FlashAttention2 has no Float32"),
        ({"attention": "FlashAttention2"}, SAME, SAME, [], ""),
    ],
)
def test_how_a_policy_cannot_be_held(
    loading: dict[str, Any], sft: dict[str, Any], grpo: dict[str, Any], stages: list[dict[str, Any]], said: str
) -> None:
    engine = {"engine": loading["engine"]} if "engine" in loading else {}
    loading = {name: value for name, value in loading.items() if name != "engine"}
    policy = {"baseModel": "models/qwen", "loading": loading, "sft": {"lora": sft}, "grpo": {"lora": grpo}, **engine}
    problems = unsupported(spec_with(SUPPORTED | {"policy": policy, "stages": stages}))
    assert len(problems) == bool(said)
    for problem in problems:
        assert problem.path == f"spec.policy.loading.{next(iter(loading))}"
        assert said in problem.message
        assert "leave" in problem.message


def test_refusals_name_the_field_to_use() -> None:
    (problem,) = unsupported(spec_with(SUPPORTED | {"policy.grpo.trainer": {"beta": 0.1}}))
    assert problem.message == "not to be set here: use spec.policy.grpo.klCoefficient"


@pytest.mark.parametrize("option", ["use_vllm", "vllm_mode", "vllm_server_base_url"])
def test_trl_s_own_vllm_is_refused_and_the_engine_named(option: str) -> None:
    (problem,) = unsupported(spec_with(SUPPORTED | {"policy.grpo.trainer": {option: True}}))
    assert problem.path == f"spec.policy.grpo.trainer.{option}"
    assert "spec.policy.engine" in problem.message


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_the_length_of_a_training_has_a_field_of_its_own(stage: str) -> None:
    trainer = f"policy.{stage}.trainer"
    assert _paths({trainer: {"num_train_epochs": 2}}) == [f"spec.{trainer}.num_train_epochs"]
    assert _paths({trainer: {"max_steps": 2}, f"policy.{stage}.numEpochs": 2}) == []


def test_fields_named_as_the_way_out_exist() -> None:
    spec_with(
        {
            "policy.sft": {"learningRate": 1, "numEpochs": 1},
            "seed": 1,
            "stages": [{"name": "sft", "deepspeed": "Zero2"}],
        }
    )
    spec_with(
        {"policy.grpo": {"numGenerations": 2, "klCoefficient": 0, "rewards": [{"type": "AnswerMatch", "weight": 1}]}}
    )
