"""The policy as adapters: what SFT and GRPO publish, what readers make of it, and how trainings go on with it."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from medgr2_api.stage_contract import ArtifactRef, ExitCode, StageRequest
from medgr2_api.training_spec import Adapters
from medgr2_jobs.errors import CorruptArtifact
from medgr2_jobs.export import __main__ as exporting
from medgr2_jobs.export.published_policy import find
from medgr2_jobs.models import checkpoint, vlm
from medgr2_jobs.policy.model import Start
from medgr2_jobs.stages import grpo as grpo_stage
from medgr2_jobs.store.artifact import ArtifactReader
from medgr2_jobs.store.rows.evaluation import Prediction
from medgr2_jobs.training.trainer import lora_config
from tests.support import export_fixtures, policy_fixtures
from tests.support.export_fixtures import CYCLE
from tests.support.policy_fixtures import PolicyWorkspace, in_child

LORA = {"rank": 8, "alpha": 16}
SFT = {"max_steps": 6, "per_device_train_batch_size": 8}
GRPO = {"max_steps": 4, "per_device_train_batch_size": 16}
PARTS = {"model/adapter_config.json", "model/adapter_model.safetensors", "model/base.json"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> PolicyWorkspace:
    """With an SFT of adapters instead of the random whole model."""
    made = policy_fixtures.build(tmp_path_factory.mktemp("workspace"))
    export_fixtures.prepared(made)
    made.refs["sft"] = made.refs["policy"] = export_fixtures.run(made, made.sft(SFT, rank=8))
    return made


def reader(workspace: PolicyWorkspace, role: str) -> ArtifactReader:
    return ArtifactReader(workspace.root, workspace.refs[role])


def base(workspace: PolicyWorkspace) -> Path:
    return reader(workspace, "prepare").folder_of("models/policy")


def parts(found: ArtifactReader) -> set[str]:
    return {part.name for part in found.manifest.parts if part.name.startswith("model/")}


def test_sft_publishes_adapters_in_float32_and_which_model_they_stand_on(workspace: PolicyWorkspace) -> None:
    found = reader(workspace, "sft")
    assert parts(found) == PARTS
    weights = load_file(found.file("model/adapter_model.safetensors"))
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert all("language_model" in name for name in weights), "vLLM serves no adapters on the vision tower"
    named = json.loads(found.file("model/base.json").read_text())
    prepare = reader(workspace, "prepare")
    assert named == {"role": "prepare", "part": "models/policy", "digest": prepare.digest_of("models/policy")}
    config = json.loads(found.file("model/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (8, 16, None)
    for name in PARTS:
        assert str(workspace.root).encode() not in found.file(name).read_bytes(), "equal wherever the workspace lies"


def test_readers_load_base_and_adapters(workspace: PolicyWorkspace) -> None:
    context = workspace.context(workspace.preferences())
    loaded = checkpoint.published(context, "policy")
    start, after = vlm.load_model(base(workspace)).state_dict(), loaded.load().state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, start[name])}
    assert changed
    assert all("language_model.layers" in name for name in changed)
    assert loaded.processor().tokenizer.padding_side == "right"


def test_adapters_of_another_base_are_refused(workspace: PolicyWorkspace) -> None:
    other = workspace.root / "other"
    other.mkdir(exist_ok=True)
    for name in PARTS:
        (other / Path(name).name).write_bytes(reader(workspace, "sft").file(name).read_bytes())
    named = json.loads((other / "base.json").read_text())
    context = workspace.context(workspace.preferences())
    assert checkpoint.at(context, other).adapter == other
    (other / "base.json").write_text(json.dumps({**named, "digest": "0" * 64}))
    with pytest.raises(CorruptArtifact, match="stand on another model"):
        checkpoint.at(context, other)
    (other / "base.json").write_text("{}")
    with pytest.raises(CorruptArtifact, match=r"base\.json"):
        checkpoint.at(context, other)


def grpo(workspace: PolicyWorkspace, name: str, attempt: int = 1, **changes: Any) -> StageRequest:
    return workspace.grpo(
        GRPO, name=name, attempt=attempt, **{"lora": LORA, "klCoefficient": 0.04, "release": "Best", **changes}
    )


def spied(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """GRPO's trainers, as they are built."""
    built: list[Any] = []
    honest = grpo_stage.train

    def spy(trainer: Any, callback: Any) -> None:
        built.append(trainer)
        honest(trainer, callback)

    monkeypatch.setattr(grpo_stage, "train", spy)
    return built


def test_grpo_goes_on_training_the_adapters_of_sft_beside_a_frozen_copy(
    workspace: PolicyWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = spied(monkeypatch)
    found = workspace.run(grpo(workspace, "goes-on"))
    assert found is not None
    assert parts(found) == PARTS
    [trainer] = built
    model = trainer.accelerator.unwrap_model(trainer.model)
    assert isinstance(model, PeftModel)
    assert trainer.ref_model is None, "no second copy of the base"
    first = load_file(reader(workspace, "sft").file("model/adapter_model.safetensors"))
    last = load_file(found.file("model/adapter_model.safetensors"))
    assert first.keys() == last.keys()
    assert any(not torch.equal(first[name], last[name]) for name in first)
    reference = {name: value for name, value in model.named_parameters() if ".ref." in name}
    assert len(reference) == len(first)
    assert not any(value.requires_grad for value in reference.values())
    for name, value in reference.items():
        assert torch.equal(value, first[name.replace(".ref.", ".")]), "the reference is what SFT has published"
    learnt = {id(value) for group in trainer.optimizer.param_groups for value in group["params"]}
    trained = [value for name, value in model.named_parameters() if ".default." in name]
    assert learnt == {id(value) for value in trained}
    assert {value.dtype for value in trained} == {torch.float32}


def test_without_a_kl_term_there_is_no_reference(workspace: PolicyWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    built = spied(monkeypatch)
    workspace.run(grpo(workspace, "no-kl", klCoefficient=0.0, release="Last"))
    assert list(built[0].accelerator.unwrap_model(built[0].model).peft_config) == ["default"]


@pytest.mark.parametrize("case", ["other rank", "on a whole model"])
def test_what_nobody_has_published_the_base_of_is_published_whole(
    workspace: PolicyWorkspace, case: str, tmp_path: Path
) -> None:
    """Adapters of another rank, or on a model that was fine-tuned as a whole."""
    refs = dict(workspace.refs)
    if case == "on a whole model":
        whole = workspace.run(workspace.sft(SFT, name="whole"))
        assert whole is not None
        refs["sft"] = whole.ref.model_copy(update={"output_digest": whole.digest})
    mine = PolicyWorkspace(workspace.root, refs, workspace.training, workspace.candidates, workspace.decisions)
    rank = 4 if case == "other rank" else 8
    lora = {"rank": rank, "alpha": 2 * rank}
    found = mine.run(grpo(mine, case, lora=lora, release="Last"))
    assert found is not None
    assert "model/config.json" in parts(found)
    assert not parts(found) & PARTS
    before = checkpoint.published(mine.context(grpo(mine, case)), "sft").load().state_dict()
    after = vlm.load_model(found.folder_of("model")).state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed
    assert all("language_model.layers" in name for name in changed), "what SFT learnt is under it"


def test_two_rounds_go_on_with_one_set_of_adapters(workspace: PolicyWorkspace) -> None:
    first = workspace.run(grpo(workspace, "round-1", release="Last"))
    assert first is not None
    request = workspace.sft(SFT, rank=8, name="round-2")
    request.parameters["initFrom"] = "Previous"
    ref = first.ref.model_copy(update={"output_digest": first.digest})
    second = workspace.run(request.model_copy(update={"inputs": {**request.inputs, "policy": ref}}))
    assert second is not None
    assert parts(second) == PARTS
    before = load_file(first.file("model/adapter_model.safetensors"))
    after = load_file(second.file("model/adapter_model.safetensors"))
    fresh = load_file(reader(workspace, "sft").file("model/adapter_model.safetensors"))
    moved = sum(float((after[name] - before[name]).abs().sum()) for name in after)
    anew = sum(float((after[name] - fresh[name]).abs().sum()) for name in after)
    assert 0 < moved < anew, "it starts from the previous policy, and stays nearer to it than to the first one"
    assert json.loads(second.file("model/base.json").read_text()) == json.loads(
        first.file("model/base.json").read_text()
    )


def test_evaluate_on_adapters_equals_evaluate_on_the_merged_model(workspace: PolicyWorkspace) -> None:
    measured = evaluated(workspace, workspace.refs["sft"])
    merged = workspace.root / "merged"
    context = workspace.context(workspace.preferences())
    found = checkpoint.published(context, "policy")

    def write(writer: Any) -> None:
        found.load().save_pretrained(writer.path("model"))
        found.processor().save_pretrained(writer.path("model"))

    ref = policy_fixtures.published(workspace.root, str(merged), "sft", write)
    again = evaluated(workspace, ref)
    assert [row.text for row in measured] == [row.text for row in again]
    for one, other in zip(measured, again, strict=True):
        assert one.option_logprobs == pytest.approx(other.option_logprobs, abs=1e-5)


def evaluated(workspace: PolicyWorkspace, sft: ArtifactRef) -> list[Prediction]:
    refs = {**workspace.refs, "sft": sft}
    mine = PolicyWorkspace(workspace.root, refs, workspace.training, workspace.candidates, workspace.decisions)
    request = mine.request("evaluate", {"iteration": 1, "controls": []}, ["prepare", "sft"], name=sft.path)
    found = mine.run(request)
    assert found is not None
    return found.rows(Prediction)


@pytest.mark.parametrize("stage", ["preferences", "relabel"])
def test_the_other_readers_read_adapters(workspace: PolicyWorkspace, stage: str) -> None:
    assert workspace.run(getattr(workspace, stage)()) is not None


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_kills_and_sigterm_do_not_change_a_byte(workspace: PolicyWorkspace, kind: str) -> None:
    """Of a training that goes on with adapters: `kill -9`, then in the middle of a checkpoint, then SIGTERM."""

    def request(name: str, attempt: int) -> StageRequest:
        if kind == "grpo":
            return workspace.grpo({**GRPO, "max_steps": 8}, name=name, attempt=attempt, lora=LORA, klCoefficient=0.04)
        made = workspace.sft({**SFT, "max_steps": 8}, rank=8, name=name, attempt=attempt)
        made.parameters["initFrom"] = "Previous"
        return made.model_copy(update={"inputs": {**made.inputs, "policy": workspace.refs["policy"]}})

    straight = request("straight", 1)
    assert in_child(workspace, straight) == ExitCode.OK
    steps = sorted(random.Random(kind).sample(range(2, 7), 3))
    assert in_child(workspace, request("torn", 1), steps[0], signal.SIGKILL) == -signal.SIGKILL
    assert in_child(workspace, request("torn", 2), steps[1], signal.SIGKILL, "save") == -signal.SIGKILL
    assert in_child(workspace, request("torn", 3), steps[2], signal.SIGTERM) == ExitCode.CHECKPOINTED
    assert in_child(workspace, request("torn", 4)) == ExitCode.OK
    one, other = workspace.reader(straight), workspace.reader(request("torn", 4))
    assert parts(one) == PARTS
    assert one.digest == other.digest


def test_an_export_has_the_adapters_and_the_merged_model(workspace: PolicyWorkspace, tmp_path: Path) -> None:
    found = find(workspace.root, CYCLE, "sft@1")
    folder = exporting.export(found, tmp_path / "out")
    merged = found.checkpoint.load().to(torch.bfloat16).state_dict()
    written = vlm.load_model(folder, dtype="auto").state_dict()
    assert all(torch.equal(written[name], value) for name, value in merged.items())
    assert {path.name for path in (folder / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    model = vlm.with_adapter(vlm.load_model(base(workspace)), folder / "adapter").merge_and_unload()
    again = model.state_dict()
    assert all(torch.equal(again[name], value) for name, value in found.checkpoint.load().state_dict().items())
    assert "adapters (LoRA), merged" in (folder / "README.md").read_text()


def test_adapters_are_float32_on_a_base_of_bfloat16_and_learn(workspace: PolicyWorkspace) -> None:
    """As on a GPU: only the base is rounded."""
    context = workspace.context(workspace.preferences())
    found = checkpoint.published(context, "policy")
    start = Start(found, lora_config_of(8))
    assert start.continues
    assert found.adapter is not None
    model = vlm.with_adapter(vlm.load_model(found.base, train=True, dtype=torch.bfloat16), found.adapter, dropout=0.0)
    kinds = {(value.dtype, value.requires_grad) for value in model.parameters()}
    assert kinds == {(torch.bfloat16, False), (torch.float32, True)}
    assert not Start(found, lora_config_of(4)).continues


def lora_config_of(rank: int) -> Any:
    return lora_config(Adapters(rank=rank, alpha=2 * rank))
