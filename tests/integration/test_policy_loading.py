"""How the policy is held while it is trained: 4 bits a weight under adapters, precision, attention, a frozen tower."""

from __future__ import annotations

import json
import re
import signal
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file

from medgr2_api.model_families import VISION_TOWER
from medgr2_api.stage_contract import ExitCode, StageRequest
from medgr2_jobs.errors import ConfigError
from medgr2_jobs.models import checkpoint, held, vlm
from medgr2_jobs.policy import fine_tuning
from medgr2_jobs.stages import grpo as grpo_stage
from medgr2_jobs.store.artifact import ArtifactReader
from tests.support import policy_fixtures
from tests.support.policy_fixtures import PolicyWorkspace, in_child

NF4 = {"quantization": "NF4"}
PARTS = {"model/adapter_config.json", "model/adapter_model.safetensors", "model/base.json"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> PolicyWorkspace:
    return policy_fixtures.build(tmp_path_factory.mktemp("workspace"))


def sft(
    workspace: PolicyWorkspace, loading: dict[str, Any], *, rank: int = 8, name: str = "", attempt: int = 1
) -> StageRequest:
    trainer = {"max_steps": 6, "per_device_train_batch_size": 8, "lr_scheduler_type": "constant"}
    made = workspace.sft(trainer, rank=rank, name=name or str(loading), attempt=attempt)
    made.parameters["loading"] = loading
    return made


def base_of(workspace: PolicyWorkspace) -> dict[str, torch.Tensor]:
    folder = ArtifactReader(workspace.root, workspace.refs["prepare"]).folder_of("models/policy")
    found: dict[str, torch.Tensor] = vlm.load_model(folder).state_dict()
    return found


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The trainers, as they are when they begin."""
    built: list[Any] = []
    for module in (fine_tuning, grpo_stage):

        def spy(trainer: Any, callback: Any, honest: Any = module.train) -> None:
            built.append(trainer)
            trainer.at_first = {name: w.detach().clone() for name, w in trainer.model.named_parameters()}
            honest(trainer, callback)

        monkeypatch.setattr(module, "train", spy)
    return built


def test_adapters_on_a_base_of_4_bits_go_from_sft_to_grpo_in_float32_and_stand_on_the_base_as_it_was_fetched(
    workspace: PolicyWorkspace, trained: list[Any]
) -> None:
    first = workspace.run(sft(workspace, NF4))
    assert first is not None
    assert {part.name for part in first.manifest.parts if part.name.startswith("model/")} == PARTS
    log = json.loads(first.file("log.json").read_text())
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < losses[0] - 0.1

    refs = {**workspace.refs, "sft": first.ref.model_copy(update={"output_digest": first.digest})}
    mine = PolicyWorkspace(workspace.root, refs, workspace.training, workspace.candidates, workspace.decisions)
    request = mine.grpo({"max_steps": 2}, name="nf4", lora={"rank": 8, "alpha": 16}, klCoefficient=0.04)
    request.parameters["loading"] = NF4
    last = mine.run(request)
    assert last is not None

    for trainer in trained:
        parts = dict(trainer.model.named_modules())
        four = {name for name, part in parts.items() if isinstance(part, Linear4bit)}
        assert len(four) == 7 * trainer.model.config.get_text_config().num_hidden_layers
        assert all("language_model.layers" in name for name in four), "neither the tower nor the LM head"
        assert all(parts[name].weight.dtype is torch.uint8 for name in four)
        learning = {weight.dtype for weight in trainer.model.parameters() if weight.requires_grad}
        assert learning == {torch.float32}
    published = load_file(first.file("model/adapter_model.safetensors"))
    for name, value in published.items():  # GRPO begins with them to the bit, and so does its reference
        for adapter in ("default", "ref"):
            assert torch.equal(trained[1].at_first[name.replace(".weight", f".{adapter}.weight")], value)
    after = load_file(last.file("model/adapter_model.safetensors"))
    assert any(not torch.equal(after[name], published[name]) for name in after)
    assert {value.dtype for value in after.values()} == {torch.float32}

    start = base_of(workspace)
    read = checkpoint.at(mine.context(mine.preferences()), last.folder_of("model")).load().state_dict()
    assert read.keys() == start.keys()
    for name, value in read.items():
        assert value.dtype is torch.float32
        assert "language_model.layers" in name or torch.equal(value, start[name])


def test_a_kill_does_not_change_a_byte_of_what_is_learnt_on_4_bits(workspace: PolicyWorkspace) -> None:
    straight = sft(workspace, NF4, name="straight")
    assert in_child(workspace, straight) == ExitCode.OK
    assert in_child(workspace, sft(workspace, NF4, name="torn"), 3, signal.SIGKILL) == -signal.SIGKILL
    again = sft(workspace, NF4, name="torn", attempt=2)
    assert in_child(workspace, again) == ExitCode.OK
    assert workspace.reader(again).digest == workspace.reader(straight).digest


def test_what_is_not_under_adapters_on_the_base_is_not_quantized(
    workspace: PolicyWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"policy\.loading\.quantization: .* all weights learn"):
        fine_tune(workspace, sft(workspace, NF4, rank=0))
    monkeypatch.setattr(held.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"quantization needs a package .*medgr2\[quantization\]"):
        fine_tune(workspace, sft(workspace, NF4, name="no package"))


def fine_tune(workspace: PolicyWorkspace, request: StageRequest) -> None:
    from medgr2_jobs.stages import sft as stage

    stage.run(workspace.context(request))


@pytest.mark.parametrize("frozen", [True, False])
def test_the_vision_tower_stays_as_it_is_where_it_is_frozen(workspace: PolicyWorkspace, frozen: bool) -> None:
    found = workspace.run(sft(workspace, {"freezeVisionTower": frozen}, rank=0))
    assert found is not None
    start, after = base_of(workspace), vlm.load_model(found.folder_of("model")).state_dict()
    changed = {name for name in after if not torch.equal(after[name], start[name])}
    tower = {name for name in after if re.fullmatch(VISION_TOWER, name)}
    assert tower
    assert any("merger" in name for name in changed), "what joins it to the language model learns"
    assert any("language_model" in name for name in changed)
    assert bool(tower & changed) is not frozen


def test_in_bfloat16_the_base_is_bfloat16_and_adapters_are_not(workspace: PolicyWorkspace, trained: list[Any]) -> None:
    found = workspace.run(sft(workspace, {"precision": "BFloat16"}))
    assert found is not None
    [trainer] = trained
    assert trainer.args.bf16
    kinds = {weight.requires_grad: weight.dtype for weight in trainer.model.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    plain = workspace.run(sft(workspace, {}))
    assert plain is not None
    assert not trained[1].args.bf16
    said = workspace.run(sft(workspace, {"precision": "Float32"}))
    assert said is not None
    assert said.digest == plain.digest != found.digest


def test_attention_is_computed_as_asked_for(workspace: PolicyWorkspace, trained: list[Any]) -> None:
    for name, implementation in (("SDPA", "sdpa"), ("Eager", "eager")):
        assert workspace.run(sft(workspace, {"attention": name})) is not None
        assert trained[-1].model.config.get_text_config()._attn_implementation == implementation
        assert trained[-1].model.config.vision_config._attn_implementation == implementation


def test_flash_attention_without_a_gpu_is_refused(workspace: PolicyWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    flash = {"attention": "FlashAttention2"}
    with pytest.raises(ConfigError, match=r"policy\.loading\.attention: FlashAttention2 needs a GPU"):
        fine_tune(workspace, sft(workspace, flash))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match=r"FlashAttention2 needs a package .*flash-attn"):
        held.attention(held.Attention.FLASH_ATTENTION_2)
