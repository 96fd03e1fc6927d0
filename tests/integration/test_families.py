"""Families of models beside Qwen's, each by a tiny random model of its real classes: through every kind of step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medgr2_api.model_families import FAMILIES
from medgr2_api.reward_model import Grades, RewardHead
from medgr2_api.training_spec import Adapters
from medgr2_jobs.engine.in_process import InProcessSampler
from medgr2_jobs.evaluate import scoring
from medgr2_jobs.models import generation, vlm
from medgr2_jobs.models.vlm import Encoder, PromptResponse
from medgr2_jobs.policy.dataset import CompletionCollator
from medgr2_jobs.reward.model import RewardModel
from medgr2_jobs.reward.scorer import score
from medgr2_jobs.training.trainer import lora_config
from tests.support import family_fixtures, policy_fixtures
from tests.support.policy_fixtures import FORMAT, PolicyWorkspace

PROCESSED = [name for name, family in FAMILIES.items() if not family.counts_grid]
LORA = {"rank": 4, "alpha": 8}


@pytest.fixture(scope="module", params=PROCESSED)
def workspace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PolicyWorkspace:
    family: str = request.param

    def write(folder: Path, seed: int) -> None:
        family_fixtures.write(family, folder, seed)

    return policy_fixtures.build(tmp_path_factory.mktemp(family), 12, write)


class Loaded:
    """The policy of a workspace."""

    def __init__(self, workspace: PolicyWorkspace) -> None:
        folder = workspace.context(workspace.sft()).input("prepare").folder_of("models/policy")
        self.folder = folder
        self.model = vlm.load_model(folder)
        self.processor = vlm.load_processor(folder)
        self.encoder = Encoder(self.processor, workspace.images)
        images = sorted({row.image_sha256 for row in workspace.training})
        self.rows = [
            PromptResponse(images[0], "Which kind of image is this?\nA. wave", "<think>a wave</think>"),
            PromptResponse(images[1], "Describe.", "ring"),
            PromptResponse(None, "Describe.", "ring"),
        ]


@pytest.fixture(scope="module")
def loaded(workspace: PolicyWorkspace) -> Loaded:
    return Loaded(workspace)


def test_every_family_of_the_table_is_gone_through() -> None:
    assert set(PROCESSED) == set(family_fixtures.BUILDERS)


def stock(loaded: Loaded, row: PromptResponse, answer: str) -> Any:
    """What the family's own processor makes of one row."""
    shown = {} if row.image_sha256 is None else {"images": [[loaded.encoder.image(row.image_sha256)]]}
    text = loaded.encoder.chat(row.prompt, with_image=bool(shown)) + answer
    return loaded.processor(text=[text], add_special_tokens=False, return_tensors="pt", **shown)


@torch.no_grad()
def test_a_padded_batch_has_the_log_probabilities_of_the_stock_processor_and_model(loaded: Loaded) -> None:
    batch = loaded.encoder.batch(loaded.rows, end=False)
    assert len({int(count) for count in batch.inputs["attention_mask"].sum(1)}) > 1, "nothing was padded"
    logprobs, mask, _ = vlm.response_logprobs(loaded.model, batch)
    for index, row in enumerate(loaded.rows):
        inputs = stock(loaded, row, row.response)
        count = inputs["input_ids"].shape[1]
        assert batch.inputs["input_ids"][index, :count].tolist() == inputs["input_ids"][0].tolist()
        assert int(batch.inputs["attention_mask"][index].sum()) == count
        logits = loaded.model(**inputs).logits[0, :-1].float()
        targets = inputs["input_ids"][0, 1:, None]
        each = torch.log_softmax(logits, -1).gather(1, targets).squeeze(1)
        answer = mask[index, : count - 1]
        assert int(answer.sum()) > 0
        torch.testing.assert_close(logprobs[index, : count - 1][answer], each[answer], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_greedy_answers_are_those_of_the_stock_processor_and_model(loaded: Loaded) -> None:
    rows = [PromptResponse(row.image_sha256, row.prompt) for row in loaded.rows]
    texts = vlm.generate(loaded.model, loaded.encoder, rows, max_new_tokens=6)
    never = generation.never_sampled(loaded.processor, loaded.model.generation_config.eos_token_id)
    for row, text in zip(rows, texts, strict=True):
        inputs = stock(loaded, row, "")
        output = loaded.model.generate(**inputs, max_new_tokens=6, do_sample=False, suppress_tokens=never)
        new = output[0, inputs["input_ids"].shape[1] :]
        assert text == loaded.processor.tokenizer.decode(new, skip_special_tokens=True)


@torch.no_grad()
def test_an_option_is_as_likely_as_in_a_pass_of_its_own(loaded: Loaded) -> None:
    options = [["wave", "ring", "a stripe"]] * len(loaded.rows)
    contexts = ["<think>wave</think><answer>"] * len(loaded.rows)
    found = scoring.option_logprobs(
        InProcessSampler(model=loaded.model), loaded.encoder, loaded.rows, contexts, options, FORMAT
    )
    for row, context, offered, values in zip(loaded.rows, contexts, options, found, strict=True):
        for option, value in zip(offered, values, strict=True):
            inputs = stock(loaded, row, f"{context}{option}</answer>")
            start = stock(loaded, row, context)["input_ids"].shape[1]
            logits = loaded.model(**inputs).logits[0, :-1].float()
            each = torch.log_softmax(logits, -1).gather(1, inputs["input_ids"][0, 1:, None]).squeeze(1)
            # the end of the context may have melted into the option: then both have one token fewer in common
            near = [float(each[start - 1 - back :].sum()) for back in (0, 1)]
            assert min(abs(value - one) for one in near) < 1e-4


def test_the_image_is_seen(loaded: Loaded) -> None:
    first, second = sorted({row.image_sha256 for row in loaded.rows if row.image_sha256})[:2]
    rows = [PromptResponse(name, "Describe.", "ring") for name in (first, second)]
    with torch.no_grad():
        logprobs, _, _ = vlm.response_logprobs(loaded.model, loaded.encoder.batch(rows))
    assert not torch.allclose(logprobs[0], logprobs[1])


def test_a_text_with_the_image_token_is_refused(loaded: Loaded) -> None:
    collator = CompletionCollator(loaded.encoder)
    collator.check([("good", loaded.rows[0])])
    for text in (loaded.processor.image_token, loaded.processor.tokenizer.convert_ids_to_tokens(
        loaded.encoder.image_token_id)):  # fmt: skip
        for row in (PromptResponse(loaded.rows[0].image_sha256, f"what {text}?", "ring"),
                    PromptResponse(loaded.rows[0].image_sha256, "what?", f"a {text}")):  # fmt: skip
            with pytest.raises(Exception, match="image token"):
                collator.check([("bad", row)])


@pytest.mark.parametrize("rank", [0, 4])
def test_sft_and_grpo_train_and_publish(workspace: PolicyWorkspace, rank: int) -> None:
    two = {"max_steps": 2, "per_device_train_batch_size": 4}
    tuned = workspace.run(workspace.sft(two, rank=rank, name=f"family-{rank}"))
    assert tuned is not None
    losses = [entry["loss"] for entry in json.loads(tuned.file("log.json").read_text()) if "loss" in entry]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    lora = LORA if rank else {"rank": 0}
    trained = workspace.run(workspace.grpo({"max_steps": 1}, name=f"family-{rank}", lora=lora, klCoefficient=0.04))
    assert trained is not None
    assert trained.manifest.counters["steps"] == 1


def test_the_reward_model_learns_and_scores(workspace: PolicyWorkspace, loaded: Loaded, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = RewardModel.fresh(loaded.folder, RewardHead.LAST_TOKEN_AND_LIKELIHOOD, Grades(), base="")
    model.add_adapters(lora_config(Adapters(rank=4, alpha=8.0), task_type=None))
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    batch = loaded.encoder.batch(loaded.rows)
    losses = []
    for _ in range(4):
        loss = model(labels=batch.labels, targets=torch.tensor([10.0, -6.0, 0.0]), **batch.inputs)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    model.merge_adapters()
    model.save(tmp_path, loaded.processor)
    reloaded = RewardModel.load(tmp_path)
    rows = [*loaded.rows, PromptResponse(loaded.rows[0].image_sha256, loaded.rows[0].prompt, "another")]
    together = score(reloaded, loaded.encoder, rows)
    alone = [float(score(reloaded, loaded.encoder, [row])[0]) for row in rows]
    np.testing.assert_allclose(together, alone, atol=1e-4)
    assert len(set(together)) > 2, "it says the same of everything"
