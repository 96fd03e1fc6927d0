"""The tiny model: whole words, real architecture, the same bytes for the same seed, and resumable."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.fixtures import prepare_parameters, stage_request

from medgr2_api.training_spec import AnswerFormat
from medgr2_jobs.data import synthetic_images
from medgr2_jobs.errors import Checkpointed, NotFinite
from medgr2_jobs.models import vlm
from medgr2_jobs.models.tiny import model as tiny_model
from medgr2_jobs.models.tiny import pretrain
from medgr2_jobs.models.tiny import tokenizer as tiny_tokenizer
from medgr2_jobs.models.tiny.settings import PretrainSettings
from medgr2_jobs.prompts import answers
from medgr2_jobs.runner.context import StageContext

FORMAT = AnswerFormat.OPTION_TEXT
SETTINGS = PretrainSettings(steps=10, images=16, batch=4)


def context(root: Path) -> StageContext[Any]:
    request = stage_request("prepare", 0, prepare_parameters())
    made: StageContext[Any] = StageContext(request, None, root)  # type: ignore[arg-type]
    made.writer.open()
    return made


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_our_words_are_whole_tokens() -> None:
    tokens = tiny_tokenizer.tokenizer()
    for values in [*synthetic_images.VALUES.values(), *tiny_tokenizer.LOOKS.values()]:
        for value in values:
            for text in (value, f" {value}"):
                assert len(tokens(text)["input_ids"]) == len(value.split()), text
    said = answers.response("The marks look like cyst.", 1, ["mass", "cyst"], FORMAT)
    ids = tokens(said + "<|im_end|>")["input_ids"]
    assert len(ids) == 12
    assert tokens.decode(ids, skip_special_tokens=True) == said
    assert tokens.decode(tokens("Ångström π — anything")["input_ids"]) == "Ångström π — anything"


def test_captions_and_answers_share_no_word() -> None:
    looks = {word for group in tiny_tokenizer.LOOKS.values() for value in group for word in value.split()}
    texts = [
        *synthetic_images.VALUES.values(),
        *synthetic_images.QUESTIONS.values(),
        *synthetic_images.RATIONALES.values(),
    ]
    said = " ".join(text for group in texts for text in group)
    assert not looks & {word.strip("?.,").lower() for word in said.split()}


def test_size() -> None:
    tokens = tiny_tokenizer.tokenizer()
    parameters = sum(p.numel() for p in tiny_model.build(tokens, 0).parameters())
    assert 450_000 < parameters < 520_000


def test_the_stock_loader_reads_it(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    pretrain.build(ctx, SETTINGS, 1, FORMAT, tmp_path / "model")
    model = vlm.load_model(tmp_path / "model")
    processor = vlm.load_processor(tmp_path / "model")
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    sha256 = ctx.images.add(synthetic_images.draw(synthetic_images.attributes(1, 0), 1, 0), 10_000).sha256
    encoder = vlm.Encoder(processor, ctx.images)
    assert encoder.image_tokens(sha256) == 4
    (answer,) = vlm.generate(model, encoder, [vlm.PromptResponse(sha256, "Describe.")], max_new_tokens=3)
    assert isinstance(answer, str)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()} == {0o644}


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        torch.manual_seed(len(found))  # what ran before must not matter
        pretrain.build(context(tmp_path / name), SETTINGS, seed, FORMAT, tmp_path / name / "model")
        found.append(digests(tmp_path / name / "model"))
    assert found[0] == found[1]
    assert found[0]["model.safetensors"] != found[2]["model.safetensors"]


@pytest.mark.parametrize("how", ["SIGTERM", "kill"])
def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "_CHECKPOINT_STEPS", 4)
    (tmp_path / "whole").mkdir()
    pretrain.build(context(tmp_path / "whole"), SETTINGS, 1, FORMAT, tmp_path / "model-whole")

    ctx = context(tmp_path)

    class Killed(BaseException):
        pass

    def interrupt(phase: str, step: int, total: int, **metrics: float) -> None:
        if step == 6:
            if how == "kill":
                raise Killed
            ctx.stop.set()

    ctx.progress = interrupt  # type: ignore[method-assign]
    with pytest.raises(Killed if how == "kill" else Checkpointed) as stopped:
        pretrain.build(ctx, SETTINGS, 1, FORMAT, tmp_path / "model")
    if how == "SIGTERM":
        assert stopped.value.step == 7
    assert not (tmp_path / "model").exists()

    again = context(tmp_path)
    steps: list[int] = []
    again.progress = lambda phase, step, total, **metrics: steps.append(step)  # type: ignore[method-assign]
    pretrain.build(again, SETTINGS, 1, FORMAT, tmp_path / "model")
    assert steps[0] == (5 if how == "kill" else 8)
    assert digests(tmp_path / "model") == digests(tmp_path / "model-whole")


def test_a_pre_training_that_diverges_stops(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    with pytest.raises(NotFinite, match=r"pretrain: loss nan.* at step [23]: .* lower its learning rate"):
        pretrain.build(ctx, replace(SETTINGS, learning_rate=1e30), 1, FORMAT, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_damaged_or_foreign_checkpoint_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "_CHECKPOINT_STEPS", 4)
    ctx = context(tmp_path)
    pretrain.build(ctx, SETTINGS, 1, FORMAT, tmp_path / "first")
    (checkpoint,) = ctx.work.glob("pretrain-*.pt")
    data = checkpoint.read_bytes()
    for damaged in (b"", b"not a checkpoint", data[: len(data) // 2], data[:-5000] + b"\0" * 5000):
        checkpoint.write_bytes(damaged)
        shutil.rmtree(tmp_path / "second", ignore_errors=True)
        pretrain.build(ctx, SETTINGS, 1, FORMAT, tmp_path / "second")
        assert digests(tmp_path / "second") == digests(tmp_path / "first")


def test_rows_depend_on_seed_and_step_only() -> None:
    first = pretrain.rows(PretrainSettings(), 1, 5, FORMAT)
    assert first == pretrain.rows(PretrainSettings(), 1, 5, FORMAT)
    assert first != pretrain.rows(PretrainSettings(), 1, 6, FORMAT)
    assert {row.image_sha256 is None for row in first} == {True, False}


@pytest.mark.slow
def test_trl_is_not_needed() -> None:
    code = "import sys, medgr2_jobs.models.tiny.pretrain; sys.exit('trl' in sys.modules or 'peft' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
