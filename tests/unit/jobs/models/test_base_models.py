"""Models the user brings: found, whole, safe, or refused with what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.fetch_fixtures import context

from medgr2_jobs.errors import ConfigError
from medgr2_jobs.models import base_models


def safetensors(path: Path, extra: int = 0) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * (8 + extra))


def model_folder(folder: Path, family: str = "qwen2_5_vl") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    for name in ("preprocessor_config.json", "tokenizer_config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    safetensors(folder / "model.safetensors")
    return folder


def check(root: Path, **overrides: str) -> None:
    base_models.check(context(root, **overrides))


def test_a_whole_folder_is_accepted(tmp_path: Path) -> None:
    model_folder(tmp_path / "models/q")
    check(tmp_path, policyBaseModel="models/q")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "config.json").write_text("{"), "is not JSON"),
        (
            lambda f: (f / "config.json").write_text('{"model_type": "llava"}'),
            "model type 'llava' is not supported; supported:",
        ),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pickled weights"),
        (lambda f: safetensors(f / "model.safetensors", -3), "is not a whole safetensors file"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "is not a whole safetensors file"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "its processor is incomplete"),
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json or vocab.json"),
        (
            lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"w": "model-2.safetensors"}}'),
            "model-2.safetensors is missing",
        ),
    ],
)
def test_a_broken_folder_is_refused(tmp_path: Path, broken, message: str) -> None:
    broken(model_folder(tmp_path / "models/q"))
    with pytest.raises(ConfigError, match=r"^policy.baseModel: ") as error:
        check(tmp_path, policyBaseModel="models/q")
    assert message in str(error.value)


def test_a_hub_id_is_fetched_unless_that_is_forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError) as error:
        check(tmp_path, policyBaseModel="Qwen/Qwen2.5-VL-7B-Instruct")
    assert str(error.value).startswith("policy.baseModel: hf://Qwen/Qwen2.5-VL-7B-Instruct: there is no such folder")
    assert "run `medgr2 fetch` where there is a network" in str(error.value)


def test_a_fetched_folder_is_checked_like_any_other(tmp_path: Path) -> None:
    (model_folder(tmp_path / "elsewhere/q") / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(ConfigError, match=r"policy.baseModel: .*model type 'llava' is not supported; supported:"):
        check(tmp_path / "workspace", policyBaseModel=f"file://{tmp_path}/elsewhere/q")
    with pytest.raises(ConfigError, match=r"a model is a folder in Hugging Face format"):
        check(tmp_path / "workspace", policyBaseModel=f"file://{tmp_path}/elsewhere/q/config.json")


@pytest.mark.parametrize("name", ["../q", "/models/q", "models/../../q", "link"])
def test_nothing_from_outside(tmp_path: Path, name: str) -> None:
    root = tmp_path / "workspace"
    root.mkdir()
    (root / "link").symlink_to(model_folder(tmp_path / "q"))
    with pytest.raises(ConfigError, match=r"rewardModel.baseModel"):
        check(root, rewardBaseModel=name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("builtin://gpt", "no built-in model 'builtin://gpt'"),
        ("builtin://tiny-qwen2.5-vl?step=3", "no setting 'step'; it has steps"),
        ("builtin://tiny-qwen2.5-vl?steps=x", "steps='x' is not a number"),
        ("builtin://tiny-qwen2.5-vl?captions=none", "it is looks or answers"),
        ("builtin://tiny-qwen2.5-vl?images=0", "images=0 is below 1"),
    ],
)
def test_built_in_names(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check(tmp_path, policyBaseModel=name)
    assert message in str(error.value)


def test_a_checkpoint_without_its_head(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"mine/head.safetensors is missing"):
        check(tmp_path, rewardCheckpoint="mine")
    safetensors(folder / "head.safetensors")
    check(tmp_path, rewardCheckpoint="mine")
