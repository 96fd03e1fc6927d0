"""`medgr2 export` and `ask`: what leaves the workspace is the checkpoint, for any loader, with a card that says what it
is."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from medgr2_api.stage_contract import ExitCode
from medgr2_jobs.export import __main__ as exporting
from medgr2_jobs.export import ask as asking
from medgr2_jobs.export import bundle
from medgr2_jobs.export.published_policy import PublishedPolicy, find
from medgr2_jobs.models import vlm
from medgr2_jobs.models.vlm import Encoder, PromptResponse
from medgr2_jobs.prompts import answers
from medgr2_jobs.store.rows import Split
from medgr2_jobs.store.rows.prepared import Item
from medgr2_operator.cli.unpack import Unpacker
from tests.support import export_fixtures, policy_fixtures
from tests.support.export_fixtures import CYCLE
from tests.support.policy_fixtures import FORMAT, PolicyWorkspace

LEARN = {"max_steps": 40, "per_device_train_batch_size": 14, "lr_scheduler_type": "constant"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> PolicyWorkspace:
    """A cycle with sft@1, whole; measured."""
    made = policy_fixtures.build(tmp_path_factory.mktemp("workspace"))
    export_fixtures.prepared(made)
    made.refs["sft"] = export_fixtures.run(made, made.sft(LEARN))
    export_fixtures.evaluated(made, 0, [])
    export_fixtures.evaluated(made, 1, ["sft"])
    return made


def ours(found: PublishedPolicy, workspace: PolicyWorkspace, items: list[Item]) -> list[str]:
    """What the checkpoint answers, its weights rounded as the export rounds them."""
    model = found.checkpoint.load().to(torch.bfloat16).to(torch.float32)
    encoder = Encoder(found.checkpoint.processor(), workspace.images)
    rows = [PromptResponse(item.image_sha256, answers.prompt_of(item, FORMAT).text) for item in items]
    return vlm.generate(model, encoder, rows, max_new_tokens=32)


@pytest.fixture
def items(workspace: PolicyWorkspace) -> list[Item]:
    rows = workspace.context(workspace.sft()).input("prepare").rows(Item)
    return [row for row in rows if row.split is Split.VALIDATION][:8]


@pytest.mark.parametrize("name", ["sft@1", "base"])
def test_stock_transformers_answers_as_the_checkpoint_does(
    workspace: PolicyWorkspace, items: list[Item], tmp_path: Path, name: str
) -> None:
    found = find(workspace.root, CYCLE, name)
    folder = exporting.export(found, tmp_path / "out")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    said = export_fixtures.stock(folder, workspace, items)
    assert said == ours(found, workspace, items)
    if name != "base":
        assert all("<answer>" in text for text in said), "it has learnt the form"
    present = {path.name for path in folder.iterdir()}
    assert present >= {"preprocessor_config.json", "processor_config.json", "generation_config.json", "README.md"}
    assert not list(tmp_path.glob(".*")), "nothing half-written stays"
    assert all(path.stat().st_mode & 0o044 == 0o044 & ~_umask() for path in folder.iterdir()), "others may read it"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_card_says_what_it_is(workspace: PolicyWorkspace, tmp_path: Path) -> None:
    folder = exporting.export(find(workspace.root, CYCLE, "sft@1"), tmp_path / "out")
    card = ModelCard.load(folder / "README.md")
    [result] = card.data.eval_results
    measured = _figure(workspace, 1, "sft", "real")
    assert result.metric_value == measured["value"]
    assert (result.dataset_split, result.metric_name) == ("validation", "microAccuracy")
    assert card.data.to_dict().get("base_model") is None, "the built-in model is on no hub"
    for word in ("not a medical device", "Intended use", "Limits", "builtin://tiny-qwen2.5-vl", "ward (Phantom)"):
        assert word in card.text
    for digest in (find(workspace.root, CYCLE, "sft@1").artifact.digest, workspace.refs["prepare"].output_digest):
        assert digest in card.text
    for condition, shown in (
        ("blank", "a grey picture"),
        ("option_prior", "how often each answer"),
        ("chance", "chance"),
    ):
        row = _figure(workspace, 1 if condition == "blank" else 0, "sft" if condition == "blank" else "base", condition)
        line = next(line for line in card.text.splitlines() if shown in line and line.startswith("| validation"))
        assert f"{100 * row['value']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]" in line
    assert str(workspace.root) not in card.text


def _figure(workspace: PolicyWorkspace, iteration: int, checkpoint: str, condition: str) -> dict[str, Any]:
    rows = json.loads(
        find(workspace.root, CYCLE, "base").artifacts.input(f"measure-{iteration}").file("results.json").read_text()
    )
    wanted = (checkpoint, condition, "option_logprob", "all", "microAccuracy")
    keys = ("checkpoint", "condition", "scoring", "slice", "metric")
    return next(row for row in rows if tuple(row[key] for key in keys) == wanted)


def test_a_base_model_of_the_hub_is_named_with_its_revision(workspace: PolicyWorkspace, tmp_path: Path) -> None:
    made = policy_fixtures.build(tmp_path / "ws", images=3)
    export_fixtures.prepared(made, base_model="org/model@main", pins=[
        {"uri": "hf://org/model@main", "kind": "model", "revision": "c0ffee", "sha256": "0" * 64},
        {"uri": "hf://org/data", "kind": "dataset", "revision": "beef", "sha256": "0" * 64},
    ])  # fmt: skip
    folder = exporting.export(find(made.root, CYCLE, "base"), tmp_path / "out")
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == "org/model"
    assert "org/model, revision c0ffee" in card.text
    assert "was not measured" in card.text


def test_what_is_in_the_way_stays(
    workspace: PolicyWorkspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def code(cycle: str, name: str, target: Path) -> int:
        return exporting.main([cycle, name, str(target), "--workspace", str(workspace.root)])

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("x")
    assert code(CYCLE, "sft@1", mine) == ExitCode.USAGE
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    (empty := tmp_path / "empty").mkdir()
    assert code(CYCLE, "sft@1", empty) == ExitCode.OK
    for cycle, name, said in (
        (CYCLE, "sft@2", "there: sft@1, base"),
        (CYCLE, "grpo@1", "has no checkpoint grpo@1"),
        (CYCLE, "reward@1", "expected sft@N"),
        ("loup", "sft@1", "no cycle 'loup'"),
    ):
        assert code(cycle, name, tmp_path / "never") == ExitCode.USAGE
        assert said in capsys.readouterr().err
    assert not (tmp_path / "never").exists()


def test_a_write_that_fails_leaves_nothing(
    workspace: PolicyWorkspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(found: PublishedPolicy) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting.model_card, "text", full)
    code = exporting.main([CYCLE, "sft@1", str(tmp_path / "out"), "--workspace", str(workspace.root)])
    assert code == ExitCode.TEMPORARY
    assert list(tmp_path.iterdir()) == []


def test_ask_answers_as_the_checkpoint_does_and_says_which(
    workspace: PolicyWorkspace, items: list[Item], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "picture.png"
    item = items[0]
    picture.write_bytes(workspace.images.read(item.image_sha256))
    words = [CYCLE, "sft@1", str(picture), item.question, "--workspace", str(workspace.root)]
    before = sorted(path for path in workspace.root.rglob("*"))
    assert asking.main([*words, *(f"--option={option}" for option in item.options)]) == ExitCode.OK
    told = capsys.readouterr()
    found = find(workspace.root, CYCLE, "sft@1")
    encoder = Encoder(found.checkpoint.processor(), workspace.images)
    row = PromptResponse(item.image_sha256, answers.prompt_of(item, FORMAT).text)
    [text] = vlm.generate(found.checkpoint.load(), encoder, [row], max_new_tokens=32)
    picked = answers.extract(text, item.options, FORMAT)
    assert told.out == f"{text}\nanswer: {item.options[picked] if picked is not None else 'none can be read from it'}\n"
    assert "answered by sft@1 of loop" in told.err
    assert "not a medical device" in told.err
    assert sorted(path for path in workspace.root.rglob("*")) == before, "the picture goes into no workspace"


@pytest.mark.parametrize(
    ("question", "options", "said"),
    [
        ("What?", ["a"], "at least two"),
        ("What?", ["a", "A "], "the same"),
        ("<|image_pad|> What?", [], "mark of chat templates"),
        (" ", [], "need words"),
    ],
)
def test_what_cannot_be_asked(
    workspace: PolicyWorkspace, capsys: pytest.CaptureFixture[str], question: str, options: list[str], said: str
) -> None:
    words = [CYCLE, "sft@1", __file__, question, "--workspace", str(workspace.root)]
    assert asking.main([*words, *(f"--option={option}" for option in options)]) == ExitCode.USAGE
    assert said in capsys.readouterr().err


def test_a_file_that_is_no_picture(workspace: PolicyWorkspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert asking.main([CYCLE, "sft@1", __file__, "What?", "--workspace", str(workspace.root)]) == ExitCode.DATA_ERROR
    assert __file__ in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sft@1", "base"])
def test_the_bundle_of_a_cluster_is_workspace_enough(workspace: PolicyWorkspace, tmp_path: Path, name: str) -> None:
    stream = io.BytesIO()
    summary = bundle.write(workspace.root, CYCLE, name, stream)
    with Unpacker(tmp_path / "data") as unpacker:
        unpacker.write(stream.getvalue())
        unpacker.finish(summary.sha256, replace=False)
    here = exporting.export(find(workspace.root, CYCLE, name), tmp_path / "here")
    there = exporting.export(find(tmp_path / "data", CYCLE, name), tmp_path / "there")
    for path in here.rglob("*"):
        assert path.is_dir() or path.read_bytes() == (there / path.relative_to(here)).read_bytes(), path
