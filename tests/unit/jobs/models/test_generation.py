"""What a base model's own generation configuration says reaches neither sampling nor measuring nor publishing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.policy_fixtures import PolicyWorkspace
from transformers import GenerationConfig

from medgr2_jobs.errors import NotFinite
from medgr2_jobs.models import generation, vlm
from medgr2_jobs.models.checkpoint import Checkpoint
from medgr2_jobs.models.generation import Decoding
from medgr2_jobs.models.vlm import Encoder, PromptResponse
from medgr2_jobs.policy.dataset import CompletionCollator
from medgr2_jobs.policy.model import Start, save
from medgr2_jobs.prompts import answers

#: What bases of the hub bring along, and what they could.
LEAKS: dict[str, Any] = {
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 2,
    "top_k": 1,
    "top_p": 0.001,
    "temperature": 0.1,
    "do_sample": True,
    "min_p": 0.9,
    "min_length": 30,
    "min_new_tokens": 30,
    "bad_words_ids": [[5], [6], [7]],
    "suppress_tokens": [8, 9],
    "begin_suppress_tokens": list(range(300)),
    "forced_bos_token_id": 7,
    "forced_eos_token_id": 7,
    "num_beams": 3,
    "length_penalty": -5.0,
    "typical_p": 0.2,
    "max_length": 12,
    "max_new_tokens": 2,
    "stop_strings": ["e"],
    "sequence_bias": [[[10], -100.0]],
}
DECODINGS = (generation.GREEDY, Decoding(1.0), Decoding(0.7, 0.9))
THINKING = "<think>A round lucency.</think><answer>cyst</answer>"


@pytest.fixture(scope="module")
def folder(workspace: PolicyWorkspace) -> Path:
    return workspace.context(workspace.sft()).input("prepare").folder_of("models/policy")


def copied(folder: Path, tmp_path: Path, **config: Any) -> Path:
    """The model with another generation configuration beside it."""
    copy = shutil.copytree(folder, tmp_path / f"model-{len(list(tmp_path.iterdir()))}")
    path = copy / "generation_config.json"
    path.unlink()  # it may be a hard link
    path.write_text(json.dumps({**json.loads((folder / "generation_config.json").read_text()), **config}))
    return copy


def written(folder: Path, workspace: PolicyWorkspace, decoding: Decoding = generation.GREEDY) -> list[str]:
    model, encoder = vlm.load_model(folder), Encoder(vlm.load_processor(folder), workspace.images)
    torch.manual_seed(3)
    rows = [PromptResponse(row.image_sha256, answers.prompt_of(row, "OptionText").text) for row in workspace.training]
    return vlm.generate(model, encoder, rows[:2], max_new_tokens=10, decoding=decoding)


@pytest.fixture(scope="module")
def plainly(folder: Path, workspace: PolicyWorkspace) -> dict[Decoding, list[str]]:
    """What is written without any such configuration."""
    return {decoding: written(folder, workspace, decoding) for decoding in DECODINGS}


@pytest.mark.parametrize("name", LEAKS)
def test_nothing_of_a_base_changes_what_is_written(
    folder: Path, workspace: PolicyWorkspace, tmp_path: Path, name: str, plainly: dict[Decoding, list[str]]
) -> None:
    theirs = copied(folder, tmp_path, **{name: LEAKS[name]})
    assert {decoding: written(theirs, workspace, decoding) for decoding in DECODINGS} == plainly


def test_an_answer_ends_with_every_token_that_is_an_end(
    folder: Path, workspace: PolicyWorkspace, tmp_path: Path
) -> None:
    tokenizer = vlm.load_processor(folder).tokenizer
    text = written(folder, workspace)[0]
    stop = tokenizer(text, add_special_tokens=False)["input_ids"][2]
    other = copied(folder, tmp_path, eos_token_id=stop)
    model = vlm.load_model(other)
    assert model.generation_config.eos_token_id == sorted({stop, tokenizer.eos_token_id})
    assert len(written(other, workspace)[0]) < len(text)


def test_what_is_published_is_ours(folder: Path, tmp_path: Path) -> None:
    theirs = copied(folder, tmp_path, **{name: LEAKS[name] for name in ("repetition_penalty", "top_k", "do_sample")})
    model = vlm.load_model(theirs)
    model.generation_config = GenerationConfig(repetition_penalty=1.3, eos_token_id=7)  # as a trainer may leave it
    save(model, Start(Checkpoint(theirs), lora=None), tmp_path / "published")
    published = json.loads((tmp_path / "published" / "generation_config.json").read_text())
    tokenizer = vlm.load_processor(folder).tokenizer
    published.pop("transformers_version")
    assert published == {
        "do_sample": False,
        "eos_token_id": sorted({7, tokenizer.eos_token_id}),
        "pad_token_id": tokenizer.pad_token_id,
    }


def test_logits_that_are_no_numbers_end_it(folder: Path, workspace: PolicyWorkspace) -> None:
    model, encoder = vlm.load_model(folder), Encoder(vlm.load_processor(folder), workspace.images)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    rows = [PromptResponse(workspace.training[0].image_sha256, "what?")]
    for decoding in (generation.GREEDY, Decoding(1.0)):
        with pytest.raises(NotFinite, match="logits are no numbers"):
            vlm.generate(model, encoder, rows, max_new_tokens=4, decoding=decoding)


# -- templates that begin the answer -----------------------------------------------------------------------------------


def opening(folder: Path, tmp_path: Path, prefill: str) -> Path:
    """The model with a chat template that writes this where the assistant's turn begins."""
    copy = shutil.copytree(folder, tmp_path / "opening")
    path = copy / "chat_template.jinja"
    begins = "<|im_start|>assistant\n"
    before, after = path.read_text().rsplit(begins, 1)
    path.unlink()
    path.write_text(before + begins + prefill + after)
    return copy


def test_a_think_that_the_template_writes_is_taught_once(
    folder: Path, workspace: PolicyWorkspace, tmp_path: Path
) -> None:
    row = PromptResponse(workspace.training[0].image_sha256, "what?", THINKING)
    plain = Encoder(vlm.load_processor(folder), workspace.images)
    opened = Encoder(vlm.load_processor(opening(folder, tmp_path, "<think>\n")), workspace.images)
    assert (plain.opens_thinking, opened.opens_thinking) == (False, True)

    def whole(encoder: Encoder) -> str:
        batch = encoder.batch([row])
        text: str = encoder.tokenizer.decode(batch.inputs["input_ids"][0])
        return text[text.index("assistant") :].replace("\n", "")

    assert whole(opened) == whole(plain)
    assert whole(opened).count("<think>") == 1
    (labels,) = opened.batch([row]).labels
    taught = opened.tokenizer.decode(labels[labels >= 0])
    assert taught == plain.tokenizer.decode(plain.response_ids(THINKING)).removeprefix("<think>")

    item = {"images": [row.image_sha256], "prompt": row.prompt, "completion": row.response}
    collated = CompletionCollator(opened)([item])
    assert opened.tokenizer.decode(collated["input_ids"][0]).count("<think>") == 1

    bare = opened.tokenizer.decode(opened.response_ids("<answer>cyst"))
    assert bare.startswith("</think><answer>cyst"), "what the template has opened is closed"


def test_what_is_written_behind_a_think_of_the_template_is_well_formed(
    folder: Path, workspace: PolicyWorkspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = opening(folder, tmp_path, "<think>\n")
    model, encoder = vlm.load_model(other), Encoder(vlm.load_processor(other), workspace.images)
    behind = encoder.response_ids(THINKING)

    def generate(input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        assert encoder.tokenizer.decode(input_ids[0]).endswith("<think>\n")
        return torch.cat([input_ids, torch.tensor([behind] * len(input_ids))], 1)

    monkeypatch.setattr(model, "generate", generate)
    (text,) = vlm.generate(model, encoder, [PromptResponse(None, "what?")], max_new_tokens=40)
    assert text == THINKING
    assert answers.well_formed(text)


@pytest.mark.parametrize("prefill", ["<think>\n\n</think>\n\n", "Sure. "])
def test_what_else_a_template_writes_is_left_alone(
    folder: Path, workspace: PolicyWorkspace, tmp_path: Path, prefill: str
) -> None:
    encoder = Encoder(vlm.load_processor(opening(folder, tmp_path, prefill)), workspace.images)
    assert encoder.chat("what?", with_image=False).endswith(prefill)
    assert (encoder.written(THINKING), encoder.answered(THINKING)) == (THINKING, THINKING)
